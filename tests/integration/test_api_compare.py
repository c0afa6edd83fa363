"""Reports side by side over HTTP: in four forms, refused when they are not alike, and nobody else's."""

import csv
import xml.etree.ElementTree as ElementTree

import pytest
from running_api import Api
from sample_report import sample_report
from service_helpers import job_spec

from bitpress.artifacts import Report
from bitpress.jobs import Job

TEXT = "/texts/held-out.txt"


async def job_with(api: Api, bits: float, loss: float, tenant: str = "local", **changes: object) -> Job:
    report = sample_report(job_spec(), bits=bits, perplexity=loss).model_copy(update=changes)
    return await api.succeeded_job({"report.json": report.model_dump_json().encode()}, tenant)


def address(*jobs: Job | str, **query: str) -> str:
    pairs = [("job", job if isinstance(job, str) else job.id) for job in jobs] + list(query.items())
    return "/v1/reports/compare?" + "&".join(f"{name}={value}" for name, value in pairs)


async def test_jobs_stand_by_bits_in_every_form(api: Api) -> None:
    four, three = await job_with(api, 4, 19), await job_with(api, 3, 21)
    same = await job_with(api, 3.05, 22)
    url = address(four, three, same, three)
    answer = await api.client.get(url)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/json")
    found = answer.json()
    assert [(row["job"], row["bits_group"], row["on_front"]) for row in found["data"]] == [
        (three.id, 1, "yes"), (same.id, 1, "no"), (four.id, 2, "yes"),
    ]  # fmt: skip
    assert (found["object"], found["differences"]) == ("comparison", [])
    as_csv = await api.client.get(url, headers={"Accept": "text/csv"})
    assert as_csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert [row["job"] for row in csv.DictReader(as_csv.text.splitlines())] == [three.id, same.id, four.id]
    assert (await api.client.get(f"{url}&format=csv")).text == as_csv.text
    figure = await api.client.get(f"{url}&format=svg")
    assert figure.headers["content-type"] == "image/svg+xml; charset=utf-8"
    tree = ElementTree.fromstring(figure.text)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg" and len(tree.findall("{*}circle")) == 3
    (front,) = tree.findall("{*}polyline")
    assert len(front.attrib["points"].split()) == 2
    page = await api.client.get(url, headers={"Accept": "text/html"})
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.text.count("<svg") == 1 and all(job.id in page.text for job in (four, three, same))


async def test_jobs_that_were_not_evaluated_alike_are_refused_or_say_so(api: Api) -> None:
    one = sample_report(job_spec())
    shorter = {TEXT: one.perplexity[TEXT].model_copy(update={"tokens_sha256": "f" * 64})}
    jobs = await job_with(api, 4, 19), await job_with(api, 3, 21, perplexity=shorter)
    refused = await api.client.get(address(*jobs))
    assert refused.status_code == 409 and f"the windows of {TEXT}" in refused.json()["detail"]
    allowed = (await api.client.get(address(*jobs, anyway="true"))).json()
    assert len(allowed["data"]) == 2 and "the windows of" in allowed["differences"][0]
    page = (await api.client.get(address(*jobs, anyway="true", format="html"))).text
    assert "Not evaluated alike" in page


async def test_only_ones_own_jobs_that_have_a_report(api: Api) -> None:
    own, waiting = await job_with(api, 4, 19), (await api.jobs.create("local", job_spec()))[0]
    stranger = await job_with(api, 3, 21, tenant="other")
    for job in (stranger, waiting, "job_none"):
        assert (await api.client.get(address(own, job))).status_code == 404
    headers = await api.as_tenant("other")
    assert (await api.client.get(address(stranger), headers=headers)).status_code == 200
    assert (await api.client.get(address(own), headers=headers)).status_code == 404
    assert (await api.client.get(address(own), headers={"Authorization": ""})).status_code == 401


@pytest.mark.parametrize("query", ["", "?job=job_1&format=pdf", "?" + "&".join(["job=job_1"] * 65)])
async def test_what_cannot_be_asked(api: Api, query: str) -> None:
    answer = await api.client.get(f"/v1/reports/compare{query}")
    assert answer.status_code == 422 and answer.json()["code"] == "invalid-request"


async def test_a_figure_of_what_was_not_evaluated_is_not_there(api: Api) -> None:
    bare = await job_with(api, 4, 19, perplexity={}, divergence={}, error_growth=())
    assert (await api.client.get(address(bare))).json()["data"] == []
    assert (await api.client.get(address(bare, format="svg"))).status_code == 404
    job = await job_with(api, 4, 19)
    assert (await api.client.get(address(job, format="svg", dataset="c4"))).status_code == 404


async def test_a_report_of_another_version_is_named(api: Api) -> None:
    version = Report.model_fields["version"].default
    for content, words in (
        (b'{"version": 1}', f"of version 1, and this Bitpress reads version {version}"),
        (b"nothing", "not a report"),
        (b'{"version": 3}', "not a report: spec"),
    ):
        job = await api.succeeded_job({"report.json": content})
        answer = await api.client.get(address(job))
        assert answer.status_code == 409 and answer.json()["code"] == "bad-artifact"
        assert words in answer.json()["detail"]
