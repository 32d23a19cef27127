"""The tables of docs/capacity.md, or with your own numbers: python tools/capacity.py --texts-per-second 500

Every input of that page's first table is an option: its value there is the default.
"""

import argparse
import math
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/capacity.md"
RATES = [1.0, 100.0, 10_000.0]
# A word, a sentence, the mixed texts, a paragraph, a page.
TOKENS = [7.0, 20.0, 34.0, 105.0, 256.0]
INSTANCES = [10, 100, 1000]
Inputs = dict[str, float]


def inputs() -> Inputs:
    """First cell -> second cell, of the rows that look like | `name` | number |."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: float(value) for name, value in rows}


def plan(i: Inputs, texts_per_second: float, texts_per_request: float) -> dict[str, float]:
    """Return instances and dollars a month, by the formulas of the page in their order."""
    batched = texts_per_request > 1
    texts_per_vcpu_second = i["texts_per_vcpu_second_batched" if batched else "texts_per_vcpu_second"]
    instance_texts_per_second = texts_per_vcpu_second * i["vcpus"] * i["utilization"]
    instances = math.ceil(texts_per_second / instance_texts_per_second)

    requests_per_second = texts_per_second / texts_per_request
    # A request alone is billed in whole steps; where requests overlap, all the time is billed, once.
    billed_seconds = math.ceil(texts_per_request / texts_per_vcpu_second / i["billing_step"]) * i["billing_step"]
    billed_share = min(1.0, requests_per_second / instances * billed_seconds)
    fees = requests_per_second * i["million_requests"] / 1e6
    by_request = i["month_seconds"] * (instances * billed_share * instance(i, "request") + fees)
    by_instance = i["month_seconds"] * instances * instance(i, "instance")
    return {
        "requests_per_second": requests_per_second,
        "instances": instances,
        "slow_instances": math.ceil(texts_per_second * i["slow_cpu"] / instance_texts_per_second),
        "by_request": by_request,
        "by_instance": by_instance,
        "million_texts": min(by_request, by_instance) / (texts_per_second * i["month_seconds"]) * 1e6,
        "vms": math.ceil(texts_per_second / texts_per_vcpu_second / i["utilization"]) * i["vm_vcpu_month"],
    }


def job(i: Inputs, tokens: float) -> dict[str, float]:
    """Return hours of one vCPU and dollars for job_texts of `tokens` tokens each."""
    # A line through two measurements: texts of mean_tokens, and pages.
    mean_seconds = 1 / i["texts_per_vcpu_second_batched"]
    token_seconds = (i["page_seconds"] - mean_seconds) / (i["page_tokens"] - i["mean_tokens"])
    text_seconds = i["page_seconds"] + (tokens - i["page_tokens"]) * token_seconds
    instance_seconds = i["job_texts"] * text_seconds / i["vcpus"]
    fees = i["job_texts"] / i["batching_rows"] * i["million_requests"] / 1e6
    return {
        "texts_per_vcpu_second": 1 / text_seconds,
        "instance_hours": instance_seconds / 3600,
        "instances_for_one_query": math.ceil(instance_seconds / 3600 / i["query_hours"]),
        "by_request": instance_seconds * instance(i, "request") + fees,
        "by_instance": instance_seconds * instance(i, "instance"),
    }


def instance(i: Inputs, billing: str) -> float:
    """Return dollars a second of one instance: with requests ("request"), without ("idle"), always ("instance")."""
    return i["vcpus"] * i[f"cpu_{billing}"] + i["memory_gib"] * i[f"memory_{billing}"]


def number(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    defaults = inputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts-per-second", type=float, nargs="+", default=RATES, metavar="RATE")
    parser.add_argument("--tokens", type=float, nargs="+", default=TOKENS, help="of a text, for the job")
    parser.add_argument("--instances", type=int, nargs="+", default=INSTANCES, help="that the job may have (maxScale)")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=f"default: {value:g}")
    options = vars(parser.parse_args())
    i = {name: options[name] for name in defaults}

    print("| texts/s | texts a request | requests/s | instances | slow CPU | request-based | instance-based", end="")
    print(" | a million texts | VMs |\n" + "| ---: " * 9 + "|")
    for rate in options["texts_per_second"]:
        for size in (1, i["batch"]):
            p = plan(i, rate, size)
            print(f"| {rate:,g} | {size:g} | {number(p['requests_per_second'])} | {p['instances']:,} | ", end="")
            print(f"{p['slow_instances']:,} | ${number(p['by_request'])} | ${number(p['by_instance'])} | ", end="")
            print(f"${number(p['million_texts'])} | ${number(p['vms'])} |")
    print("\n| one instance | |\n| --- | ---: |")
    print(f"| kept for a month, idle, request-based | ${number(instance(i, 'idle') * i['month_seconds'])} |")
    print(f"| kept for a month, instance-based | ${number(instance(i, 'instance') * i['month_seconds'])} |")
    break_even = instance(i, "instance") / instance(i, "request")
    print(f"| share of its time billed, above which instance-based is cheaper | {break_even:.0%} |")
    print(f"| share of requests that wait for a start | {i['starts_per_hour'] * i['start_seconds'] / 3600:.3%} |")

    texts = f"{i['job_texts']:,.0f} texts"
    print(f"\n| {texts}: tokens a text | texts/s a vCPU | in one query of {i['query_hours']:g} h", end="")
    for count in options["instances"]:
        print(f" | {count:,} instances", end="")
    print(" | request-based | instance-based |\n" + "| ---: " * (5 + len(options["instances"])) + "|")
    for tokens in options["tokens"]:
        j = job(i, tokens)
        print(f"| {tokens:g} | {number(j['texts_per_vcpu_second'])} | ", end="")
        print(f"{j['instances_for_one_query']:,} instances | ", end="")
        print(" | ".join(f"{number(j['instance_hours'] / count)} h" for count in options["instances"]), end="")
        print(f" | ${number(j['by_request'])} | ${number(j['by_instance'])} |")
    rows = i["batching_rows"]
    last = i["concurrency"] * rows * i["page_seconds"] / i["vcpus"] * i["slow_cpu"]
    print(f"\n| {rows:g} rows a request | |\n| --- | ---: |")
    print(f"| time of a request, mixed texts | {number(rows / i['texts_per_vcpu_second_batched'] / i['vcpus'])} s |")
    print(f"| the last of {i['concurrency']:g} at once, all pages, slow CPU | {number(last)} s |")
    print(f"| response | {number(rows * i['reply_kb'] / 1000)} MB |")
    print(f"| rows that the largest response would hold | {math.floor(i['response_mb'] * 1000 / i['reply_kb']):,} |")
    print(f"| vectors of {texts} in BigQuery (`FLOAT64`) | {number(i['job_texts'] * i['dimension'] * 8 / 1e9)} GB |")


if __name__ == "__main__":
    main()
