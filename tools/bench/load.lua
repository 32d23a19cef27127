-- Requests from a file, one body a line, in turn; a line of figures at the end.
-- BENCH_PATH: where to post. BENCH_PAUSE: milliseconds before each request; then 429 is an answer like 200.
local bodies = {}
for line in io.lines(os.getenv("BENCH_BODIES")) do bodies[#bodies + 1] = line end
local path = os.getenv("BENCH_PATH") or "/embed"
local pause = tonumber(os.getenv("BENCH_PAUSE"))
local turn = 0
local workers = {}
answered, refused = 0, 0

setup = function(thread) workers[#workers + 1] = thread end

request = function()
  turn = turn % #bodies + 1
  return wrk.format("POST", path, { ["Content-Type"] = "application/json" }, bodies[turn])
end

if pause then
  delay = function() return pause end
  response = function(status)
    if status == 200 then answered = answered + 1 elseif status == 429 then refused = refused + 1 end
  end
end

done = function(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  answered, refused = workers[1]:get("answered"), workers[1]:get("refused")
  io.write(string.format("FIGURES %d %d %f %f %f %f %d %d\n", summary.requests, failed - refused,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    answered, refused))
end
