"""The dashboard and the alerts against a real server's GET /metrics: they use existing metrics, and all of them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.http_errors import CLIENT_CLOSED_REQUEST
from tests.support import ROOT
from tests.support.server import Server

BOARD = json.loads((ROOT / "deploy/grafana.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
ALERTS_TEXT = (ROOT / "deploy/alerts.yml").read_text()
RULES = [rule for group in yaml.safe_load(ALERTS_TEXT)["groups"] for rule in group["rules"]]
TESTS = yaml.safe_load((ROOT / "deploy/alerts_test.yml").read_text())
# Added by Prometheus: its own metric, and the target's labels on every metric.
OWN = "up"
TARGET = {"job", "instance"}
# Grafana's own variable; its value is a duration.
RATE_INTERVAL = "$__rate_interval"
COLUMNS = 24
# Values of labels that are not there from the start.
LATER = {"status": {str(CLIENT_CLOSED_REQUEST)}}

TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    |(?P<number>\d[\w.]*|\$\w+)
    |(?P<word>[A-Za-z_:][\w:]*)
    |(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],]))""",
    re.VERBOSE,
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "bool", "offset"}
MATCHING = {"=", "!=", "=~", "!~"}


@dataclass
class Selector:
    """A metric in an expression; matchers: (label, sign, value) of each."""

    metric: str
    matchers: list[tuple[str, str, str]]


@dataclass
class Expression:
    """Names in a PromQL expression. kept: labels of its `by`; named: labels of all its groupings."""

    selectors: list[Selector]
    kept: set[str]
    named: set[str]

    @classmethod
    def parse(cls, text: str) -> "Expression":
        tokens = list(_tokens(text))
        parsed = cls([], set(), set())
        while tokens:
            kind, token = tokens.pop(0)
            after = tokens[0][1] if tokens else ""
            if kind != "word" or token in OPERATORS:
                assert token != "{", f"a selector without a metric: {text}"
            elif token in GROUPING:
                labels = _labels(tokens) if after == "(" else set()
                parsed.named |= labels
                if token == "by":
                    parsed.kept |= labels
            elif after not in ("(", "by", "without"):  # else it is a function or an aggregation
                parsed.selectors.append(Selector(token, _matchers(tokens) if after == "{" else []))
        return parsed

    def labels(self, exposed: "Exposed") -> set[str]:
        """Return the labels that the result may have."""
        return self.kept or TARGET.union(*(exposed.labels(selector.metric) for selector in self.selectors))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while text[position:].strip():
        found = TOKEN.match(text, position)
        assert found and found.lastgroup, f"this is no PromQL: {text[position:]!r}"
        position = found.end()
        yield found.lastgroup, found[found.lastgroup]


def _labels(tokens: list[tuple[str, str]]) -> set[str]:
    """Take "(a, b)" off the tokens."""
    labels = set()
    while (taken := tokens.pop(0)) != ("sign", ")"):
        if taken[0] == "word":
            labels.add(taken[1])
    return labels


def _matchers(tokens: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Take '{a="b", c=~"d"}' off the tokens."""
    matchers = []
    while tokens.pop(0) != ("sign", "}"):
        if tokens[0][0] == "word":
            (_, label), (_, sign), (kind, value) = tokens[:3]
            assert sign in MATCHING and kind == "string", (label, sign, value)
            matchers.append((label, sign, value[1:-1]))
            del tokens[:3]
    return matchers


class Exposed:
    """Metrics of a server. values: of each sample's name, of each of its labels; families: names of their samples."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, dict[str, set[str]]] = {OWN: {}}
        self.families: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text):
            self.families[family.name] = {sample.name for sample in family.samples}
            for sample in family.samples:
                values = self.values.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    values.setdefault(label, set()).add(value)

    def labels(self, metric: str) -> set[str]:
        return set(self.values[metric]) - {"le"}


@pytest.fixture(scope="module")
def exposed(start: Callable[..., Server], tiny_model: Path) -> Exposed:
    """Return the metrics of a server without requests so far."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH="64").wait_until_ready()
    response = requests.get(f"{server.url}/metrics", timeout=10)
    assert response.ok
    return Exposed(response.text)


def queries() -> dict[str, str]:
    """Return every expression of the dashboard by its place; for a variable, its selector."""
    found = {}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for name in ("job", "instance"):
        asked = re.fullmatch(r"label_values\((.+),(\w+)\)", VARIABLES[name]["query"]["query"])
        assert asked and asked[2] == name
        found[f"variable {name}"] = asked[1]
    return found


QUERIES = queries()
EXPRESSIONS = {**QUERIES, **{rule["alert"]: rule["expr"] for rule in RULES}}


def test_the_parser() -> None:
    """The parser finds metrics, matchers and labels in PromQL, and nothing else."""
    text = """histogram_quantile(0.9, sum by (job, le) (rate(a_bucket{x=~"b{2}|\\"c",y!='d'}[5m] offset 1h))) > 2.5e3
        and on (job) -count without (z) (e:f) / ignoring (u) group_left () up == 1"""
    parsed = Expression.parse(text)
    assert parsed.selectors == [
        Selector("a_bucket", [("x", "=~", 'b{2}|\\"c'), ("y", "!=", "d")]),
        Selector("e:f", []),
        Selector("up", []),
    ]
    assert (parsed.kept, parsed.named) == ({"job", "le"}, {"job", "le", "z", "u"})


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_what_is_asked_for_is_exposed(exposed: Exposed, place: str) -> None:
    """Every metric, label and label value in a query is exposed."""
    expression = Expression.parse(EXPRESSIONS[place])
    assert expression.selectors
    allowed = set(TARGET)
    for selector in expression.selectors:
        assert selector.metric in exposed.values, selector
        labels = exposed.values[selector.metric]
        allowed |= set(labels)
        for label, sign, value in selector.matchers:
            assert label in TARGET | set(labels), selector
            if label in TARGET:
                continue
            there = labels[label] | LATER.get(label, set())
            for pattern in value.split("|") if "~" in sign else [re.escape(value)]:
                assert any(re.fullmatch(pattern, each) for each in there), (selector, pattern)
    assert expression.named <= allowed


def test_all_that_is_exposed_is_on_the_dashboard(exposed: Exposed) -> None:
    """Every exposed metric is on the dashboard."""
    used = {selector.metric for text in QUERIES.values() for selector in Expression.parse(text).selectors}
    assert len(exposed.families) > 10
    assert [name for name, samples in exposed.families.items() if not samples & used] == []


def test_probes_and_scrapes_are_left_out_everywhere(exposed: Exposed) -> None:
    """Queries that exclude routes exclude probes and scrapes, and at most one other: shares must fit together."""
    routes = exposed.values["embedding_requests_total"]["route"]
    own = {"/health", "/healthz", "/readyz", "/metrics"}
    for place, text in EXPRESSIONS.items():
        for selector in Expression.parse(text).selectors:
            matchers = {(label, sign): value for label, sign, value in selector.matchers}
            if "route" not in exposed.values[selector.metric] or ("route", "=") in matchers:
                continue
            left_out = {route for route in routes if re.fullmatch(matchers[("route", "!~")], route)}
            assert left_out - {"/bigquery"} == own, place


def test_every_panel_says_what_it_is() -> None:
    """Every panel has a title, a description with normal values and actions, a unit and colours."""
    assert max(Counter(panel["title"] for panel in PANELS).values()) == 1
    for panel in PANELS:
        assert "Normal" in panel["description"] and panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0] == {"color": "green", "value": None}, panel["title"]


def test_the_panels_fill_the_grid() -> None:
    """Each cell of the grid belongs to exactly one panel or row."""
    cells: Counter[tuple[int, int]] = Counter()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells.update((place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"]))
    height = max(y for _, y in cells) + 1
    assert set(cells) == {(x, y) for x in range(COLUMNS) for y in range(height)}
    assert max(cells.values()) == 1
    assert max(Counter(panel["id"] for panel in BOARD["panels"]).values()) == 1


def test_the_dashboard_can_be_imported_and_provisioned() -> None:
    """The dashboard has no id, and its data source is a variable."""
    assert BOARD["id"] is None and "__inputs" not in BOARD
    assert list(VARIABLES) == ["datasource", "job", "instance"]
    source = {"type": VARIABLES["datasource"]["query"], "uid": "${datasource}"}
    for part in [*PANELS, VARIABLES["job"], VARIABLES["instance"]]:
        assert [part["datasource"], *(target["datasource"] for target in part.get("targets", []))] == [
            source for _ in range(1 + len(part.get("targets", [])))
        ]


def test_every_query_is_of_the_chosen_instances() -> None:
    """Every query filters by the variables, and rates use Grafana's interval."""
    for panel in PANELS:
        for target in panel["targets"]:
            for selector in Expression.parse(target["expr"]).selectors:
                assert {("job", "=~", "$job"), ("instance", "=~", "$instance")} <= set(selector.matchers), target
            assert set(re.findall(r"\[(.*?)\]", target["expr"])) <= {RATE_INTERVAL}
            assert set(re.findall(r"\$\w+", target["expr"])) <= {"$job", "$instance", RATE_INTERVAL}


def test_templates_name_labels_that_are_there(exposed: Exposed) -> None:
    """Legends and alert texts use labels that the result has."""
    for panel in PANELS:
        for target in panel["targets"]:
            labels = Expression.parse(target["expr"]).labels(exposed)
            assert set(re.findall(r"\{\{ *(\w+) *\}\}", target["legendFormat"])) <= labels, panel["title"]
    for rule in RULES:
        expression = Expression.parse(rule["expr"])
        labels = set() if rule["expr"].startswith("absent(") else expression.labels(exposed)
        assert set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))) <= labels, rule["alert"]


def test_alerts() -> None:
    """Each alert has a name, a severity, an action, and a comment on its threshold."""
    assert max(Counter(rule["alert"] for rule in RULES).values()) == 1
    for rule in RULES:
        name = rule["alert"]
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, name
        assert re.fullmatch(r"\d+[mh]", rule["for"]), name
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(rule["annotations"]) == {"summary", "description"}, name
        assert all(text.endswith(".") for text in rule["annotations"].values()), name
        assert re.search(rf"^ *# .+\n *- alert: {name}$", ALERTS_TEXT, re.MULTILINE), name


def test_every_alert_has_a_test_for_promtool() -> None:
    """alerts_test.yml makes each alert fire."""
    assert TESTS["rule_files"] == ["alerts.yml"]
    names = set()
    for test in TESTS["tests"]:
        names |= {case["alertname"] for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
        for case in test.get("promql_expr_test", []):
            names |= {re.findall(r'alertname="(\w+)"', sample["labels"])[0] for sample in case["exp_samples"]}
    assert names == {rule["alert"] for rule in RULES}


def test_the_tests_for_promtool_feed_what_is_exposed(exposed: Exposed) -> None:
    """alerts_test.yml uses only exposed metrics and labels."""
    for test in TESTS["tests"]:
        for series in test["input_series"]:
            (selector,) = Expression.parse(series["series"]).selectors
            assert {label for label, _, _ in selector.matchers} <= TARGET | set(exposed.values[selector.metric])


def test_the_document_lists_what_is_exposed(exposed: Exposed) -> None:
    """The page on monitoring has every metric with its labels, and no other."""
    listed: dict[str, set[str]] = {}
    for row in re.findall(r"^\| `embedding_.*\|$", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE):
        names, labels, _ = (set(re.findall(r"`(\w+)`", cell)) for cell in row.split("|")[1:4])
        listed |= dict.fromkeys(names, labels)
    assert listed == {
        next(iter(samples)) if len(samples) == 1 else name: exposed.labels(next(iter(samples)))
        for name, samples in exposed.families.items()
    }
