"""The tables of docs/scaling.md, or with your own numbers: python docs/scaling.py --texts-per-second 500

Every input of that page's first table is an option: its value there is the default.
"""

import argparse
import math
import re
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
RATES = [1.0, 100.0, 10_000.0]
Inputs = dict[str, float]


def inputs() -> Inputs:
    """First cell -> second cell, of the rows that look like | `name` | number |."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: float(value) for name, value in rows}


def plan(i: Inputs, texts_per_second: float, texts_per_request: float) -> dict[str, float]:
    """Instances and dollars a month; the formulas of the page, in its order."""
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


def instance(i: Inputs, billing: str) -> float:
    """Dollars a second of one instance: while it has requests ("request"), without ("idle"), always ("instance")."""
    return i["vcpus"] * i[f"cpu_{billing}"] + i["memory_gib"] * i[f"memory_{billing}"]


def number(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    defaults = inputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts-per-second", type=float, nargs="+", default=RATES, metavar="RATE")
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


if __name__ == "__main__":
    main()
