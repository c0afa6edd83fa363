"""The form that makes a job: every parameter of every method, errors at their fields, one job for one form."""

import asyncio
import html
import re
from typing import Any

import pytest
from running_api import Api
from service_helpers import job_spec
from web_session import csrf_of, logged_in

from bitpress.errors import CheckpointError
from bitpress.jobs import Gate, parse_spec
from bitpress.methods import METHODS
from bitpress.plans import PlanAnswer

SEPTQ = {
    "model.uri": "/models/some",
    "method.kind": "septq",
    "method.bits": "2",
    "method.retained_percent": "0.5",
    "calibration.dataset": "/texts/some.txt",
    "evaluation.datasets": "/texts/a.txt\r\n/texts/b.txt",
    "exports": "dense",
    "labels": "team=nlp\r\nrun = 7",
    "once": "0123456789abcdef",
}


def fields_of(page: str) -> dict[str, str]:
    """What a browser would post of the form as it stands: text inputs, chosen options, marked boxes."""
    form = page.split('<form id="job-form"')[1].split("</form>")[0]
    posted: dict[str, str] = {}
    for tag in re.findall(r"<input [^>]+>", form):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if attributes.get("type") not in ("checkbox", "radio") or " checked" in tag:
            posted[attributes["name"]] = html.unescape(attributes.get("value", ""))
    for name, content in re.findall(r'<textarea [^>]*name="([^"]+)"[^>]*>([^<]*)<', form):
        posted[name] = html.unescape(content)
    for name, options in re.findall(r'<select [^>]*name="([^"]+)"[^>]*>(.*?)</select>', form):
        posted[name] = re.findall(r"<option selected>(\w+)", options)[0]
    return posted


@pytest.mark.parametrize("kind", METHODS)
async def test_every_parameter_of_a_method_is_a_field(api: Api, kind: str) -> None:
    async with logged_in(api) as client:
        page = (await client.get(f"/ui/new?method={kind}")).text
    schema = METHODS[kind].model_json_schema()
    for name, field in schema["properties"].items():
        assert f'name="method.{name}"' in page
        described = [part["description"] for part in (field, *field.get("anyOf", ())) if "description" in part]
        for text in described:
            assert html.escape(text.replace("null:", "empty:"), quote=False).replace("'", "&#39;") in page


@pytest.mark.parametrize("kind", METHODS)
async def test_a_form_that_is_sent_as_it_came_is_the_methods_defaults(api: Api, kind: str) -> None:
    async with logged_in(api) as client:
        posted = fields_of((await client.get(f"/ui/new?method={kind}")).text)
        posted |= {"model.uri": "/models/some", "calibration.dataset": "wikitext2"}
        if "method.bits" in posted:
            posted["method.bits"] = "4"
        answer = await client.post("/ui/new", data=posted)
        assert answer.status_code == 303, answer.text
    job = await api.jobs.get(answer.headers["location"].rpartition("/")[2], "local")
    method: dict[str, Any] = {"kind": kind} | ({"bits": 4} if "method.bits" in posted else {})
    spec = {"model": {"uri": "/models/some"}, "method": method, "calibration": {"dataset": "wikitext2"}}
    assert job.spec == parse_spec(spec)


async def test_another_job_fills_the_form(api: Api) -> None:
    preprocessing = {"rank": 8, "alpha": 4, "steps": 5, "learning_rate": 0.001, "dataset": "/texts/d.txt"}
    spec = job_spec(team="nlp").model_copy(
        update={"method": METHODS["ptq161"].model_validate({"epochs": 3, "preprocessing": preprocessing})}
    )
    job, _ = await api.jobs.create("local", spec)
    async with logged_in(api) as client:
        posted = fields_of((await client.get(f"/ui/new?like={job.id}")).text)
        answer = await client.post("/ui/new", data=posted)
    again = await api.jobs.get(answer.headers["location"].rpartition("/")[2], "local")
    assert again.id != job.id and again.spec == job.spec


async def test_a_gate_is_asked_for_by_its_box(api: Api) -> None:
    async with logged_in(api) as client:
        form = SEPTQ | {"csrf": csrf_of((await client.get("/ui/new")).text), "gate": "on", "gate.kl_max": "0.25"}
        answer = await client.post("/ui/new", data=form)
        job = await api.jobs.get(answer.headers["location"].rpartition("/")[2], "local")
        again = fields_of((await client.get(f"/ui/new?like={job.id}")).text)
    assert job.spec.gate == Gate(kl_max=0.25)
    assert (again["gate"], again["gate.kl_max"], again["gate.agreement_min"]) == ("on", "0.25", "")


async def test_the_same_form_twice_is_one_job_and_a_corrected_one_another(api: Api) -> None:
    async with logged_in(api) as client:
        form = SEPTQ | {"csrf": csrf_of((await client.get("/ui/new")).text)}
        first, second = await asyncio.gather(client.post("/ui/new", data=form), client.post("/ui/new", data=form))
        other = await client.post("/ui/new", data=form | {"method.bits": "3"})
    assert first.headers["location"] == second.headers["location"] != other.headers["location"]
    job = await api.jobs.get(first.headers["location"].rpartition("/")[2], "local")
    assert job.spec.method == METHODS["septq"].model_validate({"bits": 2, "retained_percent": 0.5})
    assert job.spec.evaluation.datasets == ("/texts/a.txt", "/texts/b.txt")
    assert job.spec.exports == ("dense",) and job.spec.labels == {"team": "nlp", "run": "7"}


async def test_errors_stand_at_their_fields_and_what_was_written_stays(api: Api) -> None:
    bad = SEPTQ | {
        "method.bits": "nine",
        "method.retained_percent": "101",
        "calibration.dataset": "text.exe",
        "evaluation.datasets": "/texts/a.txt\r\nb.exe",
        "model.uri": "",
        "devices": "1e400",
    }
    async with logged_in(api) as client:
        bad["csrf"] = csrf_of((await client.get("/ui/new")).text)
        answer = await client.post("/ui/new", data=bad)
    assert answer.status_code == 422
    for path in bad.keys() - {"once", "csrf", "method.kind", "labels", "exports"}:
        field = re.search(rf'<(?:input|textarea|fieldset)[^>]*id="field\.{re.escape(path)}"[^>]*>', answer.text)
        assert field is not None, path
        assert f'id="field.{path}.error"' in answer.text, path
        assert "aria-invalid" in field[0], path
    assert 'value="nine"' in answer.text and "b.exe" in answer.text and "exe&#39;" in answer.text
    assert (await api.jobs.list("local", limit=1)).data == ()


async def test_parameters_that_do_not_fit_together_are_named_at_the_method(api: Api) -> None:
    form = SEPTQ | {"method.kind": "gptq", "method.bits": "3", "method.static_groups": "on", "exports": "dense"}
    async with logged_in(api) as client:
        form["csrf"] = csrf_of((await client.get("/ui/new")).text)
        answer = await client.post("/ui/new", data=form)
    assert answer.status_code == 422
    fields = answer.text.split('<div id="method-fields">')[1]
    assert "static_groups and stale_groups say how groups are fitted" in fields


@pytest.mark.parametrize("script", [True, False])
async def test_another_method_keeps_what_was_written(api: Api, script: bool) -> None:
    headers = {"HX-Request": "true"} if script else {}
    async with logged_in(api) as client:
        form = SEPTQ | {"csrf": csrf_of((await client.get("/ui/new")).text), "method.kind": "gptq"}
        answer = await client.post("/ui/new/method", data=form, headers=headers)
    assert answer.status_code == 200
    assert 'name="method.static_groups"' in answer.text and "retained_percent" not in answer.text
    assert re.search(r'name="method.bits"[^>]* value="2"', answer.text)
    assert ("<html" in answer.text) == (not script)
    assert script or 'value="/models/some"' in answer.text


async def test_a_plan_is_shown_before_the_job_is_made(api: Api) -> None:
    async with logged_in(api) as client:
        form = SEPTQ | {"csrf": csrf_of((await client.get("/ui/new")).text)}
        asked = asyncio.create_task(client.post("/ui/new/plan", data=form))
        while (order := await api.jobs.claim_plan()) is None:
            await asyncio.sleep(0.01)
        assert order.request.method.kind == "septq"
        refusal = PlanAnswer.refusal(CheckpointError("there is no <b>config.json</b>"))
        await api.jobs.answer_plan(order.id, refusal)
        answer = await asked
    assert answer.status_code == 422
    assert "bad-checkpoint" in answer.text and "no &lt;b&gt;config.json" in answer.text
    assert 'value="/models/some"' in answer.text and "Submit without a plan" in answer.text
    assert (await api.jobs.list("local", limit=1)).data == ()


async def test_a_form_that_is_none_is_refused_with_a_page(api: Api) -> None:
    async with logged_in(api) as client:
        token = csrf_of((await client.get("/ui/new")).text)
        for body in (
            "",
            "method.kind=rtn&" * 1001,
            "method.kind=<script>",
            "\udcff\x00".encode("utf-8", "surrogateescape"),
        ):
            content = body if isinstance(body, bytes) else body.encode()
            answer = await client.post(
                "/ui/new",
                content=f"csrf={token}&".encode() + content,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
            )
            assert answer.status_code in (403, 422) and "<h1" in answer.text and "<script>" not in answer.text


async def test_another_method_has_its_own_defaults(api: Api) -> None:
    async with logged_in(api) as client:
        posted = fields_of((await client.get("/ui/new?method=spqr")).text)
        assert (posted["method.damping"], posted["method.group_size"]) == ("1.0", "16")
        answer = await client.post("/ui/new/method", data=posted | {"method.kind": "gptq", "method.column_block": "64"})
    found = fields_of(answer.text)
    assert (found["method.damping"], found["method.group_size"]) == ("0.01", "")
    assert found["method.column_block"] == "64" and found["shown"] == "gptq"
