// Outside the page, so that /docs needs no inline script (Content-Security-Policy).

// Swagger UI's own dark mode, which it does not choose by itself.
const dark = matchMedia("(prefers-color-scheme: dark)");
const applyScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyScheme);
applyScheme();

// The document names its server by a relative address; readers and the curl commands get the real one.
function nameServer(answer) {
  if (answer.url.endsWith("/openapi.json") && answer.ok) {
    const content = JSON.parse(answer.text);
    const url = new URL(".", document.baseURI).href.replace(/\/$/, "");
    content.servers = [{ url, description: "this server" }];
    answer.text = JSON.stringify(content);
  }
  return answer;
}

window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  responseInterceptor: nameServer,
  presets: [SwaggerUIBundle.presets.apis],
});
