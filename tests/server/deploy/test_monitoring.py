"""The rules of Prometheus and the dashboard of Grafana: what they make of series, which a loaded server has."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from server.deploy import container
from tests.server.wire import COLOURS, encode, post

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

FOLDER = Path(container.__file__).parent / "monitoring"
RULES = FOLDER / "rules.yaml"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())

# A server that answers 10 requests a second, then fails for a tenth of them, refuses a fifth, is slow, and is down.
REQUESTS = 'http_requests_total{job="jaxcnn", method="POST", route="/predict", status="%d"}'
SERIES = {
    REQUESTS % 200: "0+600x60",
    REQUESTS % 500: "0x20 0+60x40",
    REQUESTS % 503: "0x20 0+150x40",
    'jaxcnn_shed_total{job="jaxcnn", reason="requests"}': "0x20 0+150x40",
    'http_request_duration_seconds_bucket{job="jaxcnn", method="POST", le="0.1"}': "0+600x20 12000+0x40",
    'http_request_duration_seconds_bucket{job="jaxcnn", method="POST", le="5"}': "0+600x60",
    'http_request_duration_seconds_bucket{job="jaxcnn", method="POST", le="+Inf"}': "0+600x60",
    'jaxcnn_model_reloads_total{job="jaxcnn", result="failed"}': "0x20 1x40",
    'jaxcnn_model_info{job="jaxcnn", instance="a", sha256="1"}': "1x60",
    'jaxcnn_model_info{job="jaxcnn", instance="a", name="other", sha256="3"}': "1x60",
    # A file that was replaced: processes that share their metrics keep its series, with the value 0.
    'jaxcnn_model_info{job="jaxcnn", instance="a", name="other", sha256="0"}': "0x60",
    'jaxcnn_model_info{job="jaxcnn", instance="b", sha256="1"}': "1x20 _x40",
    'jaxcnn_model_info{job="jaxcnn", instance="c", sha256="2"}': "_x20 1x40",
    'up{job="jaxcnn", instance="a"}': "1x20 0x40",
}
ALERTS = {"JaxcnnDown", "JaxcnnErrors", "JaxcnnRefuses", "JaxcnnSlow", "JaxcnnReloadFailed", "JaxcnnSeveralModels"}


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def promtool(*arguments):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def fired(*, minutes, names):
    """A test of promtool: which of the alerts fire at a time, whatever they say."""
    return [
        {"expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)', "eval_time": f"{minutes}m"}
        | {"exp_samples": [{"labels": "{}", "value": int(name in names)}]}
        for name in sorted(ALERTS)
    ]


def test_alerts_fire_when_something_is_wrong_and_only_then(tmp_path):
    assert {rule["alert"] for rule in rules() if "alert" in rule} == ALERTS
    tests = fired(minutes=20, names=set()) + fired(minutes=34, names=ALERTS - {"JaxcnnSeveralModels"})
    tests += fired(minutes=58, names=ALERTS - {"JaxcnnReloadFailed"})
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.dump(content))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_pass_promtool_and_say_what_to_do():
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"].keys() == {"summary", "action"}


def test_the_dashboard_is_what_grafana_expects():
    panels = DASHBOARD["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert {item["name"] for item in DASHBOARD["templating"]["list"]} == {"datasource", "job"}
    assert all('job=~"$job"' in expression for expression in expressions())


@pytest.fixture
def prometheus(tmp_path, free_port):
    """Starts Prometheus with the rules, and returns how to query it."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    processes = []

    def start(target):
        content = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "jaxcnn", "static_configs": [{"targets": [target]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(yaml.dump(content))
        assert promtool("check", "config", tmp_path / "prometheus.yml").returncode == 0
        address = f"127.0.0.1:{free_port}"
        command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address={address}"]
        with (tmp_path / "log").open("wb") as log:
            processes.append(
                subprocess.Popen([*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stdout=log, stderr=log)
            )

        def query(expression):
            url = f"http://{address}/api/v1/query"
            answer = httpx.get(url, params={"query": expression}, trust_env=False)
            return answer.raise_for_status().json()["data"]["result"]

        return query

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.run
def test_a_loaded_server_has_every_series(serve, model_path, prometheus):
    """Asks a server for 10 seconds, of whose requests some are refused, and reads every panel and rule."""
    with serve(JAXCNN_MODEL=str(model_path)) as server:
        query = prometheus(server.client.base_url.netloc.decode())
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert post(server.client, encode(COLOURS["red"])).status_code == 200
            assert server.client.post("/predict", content=b"", headers={"Content-Type": "image/png"}).status_code == 400
            time.sleep(0.05)
        missing = {expression.replace("$job", ".*") for expression in expressions()}
        missing |= {rule["record"] for rule in rules() if "record" in rule}
        deadline = time.monotonic() + 30
        while missing and time.monotonic() < deadline:
            missing = {expression for expression in missing if not query(expression)}
            time.sleep(0.5)
        assert not missing
        (rate,) = query("job:jaxcnn_predictions:rate5m")
        assert float(rate["value"][1]) > 0
        assert query('ALERTS{alertstate="firing"}') == []


def test_every_metric_of_rules_and_dashboard_is_one_of_the_server(client):
    exposed = set(re.findall(r"^# TYPE (\w+)", client.get("/metrics").text, re.MULTILINE))
    recorded = {rule["record"].split(":")[1] for rule in rules() if "record" in rule}
    text = " ".join([*expressions(), *(rule["expr"] for rule in rules())])
    named = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:http|jaxcnn|process)_\w+", text)}
    assert named - recorded <= exposed
    assert recorded < named
