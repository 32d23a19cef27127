-- Requests from a file, one body a line, in turn; a line of figures at the end.
local bodies = {}
for line in io.lines(os.getenv("BENCH_BODIES")) do bodies[#bodies + 1] = line end
local turn = 0

request = function()
  turn = turn % #bodies + 1
  return wrk.format("POST", "/embed", { ["Content-Type"] = "application/json" }, bodies[turn])
end

done = function(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("FIGURES %d %d %f %f %f %f\n", summary.requests, failed, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
