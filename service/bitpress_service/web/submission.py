"""The form that makes a job: fields of one method, a plan of what the job will need, then the job."""

import hashlib
import secrets
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from bitpress.advice import advice
from bitpress.errors import BitpressError, InvalidJob
from bitpress.jobs import JobSpec, canonical_json, parse_spec
from bitpress.methods import METHODS
from bitpress.plans import PlanReport, PlanRequest, SweepPlanReport
from bitpress_service.routes import jobs as job_routes
from bitpress_service.routes import plans as plan_routes
from bitpress_service.routes.dependencies import AllowedSources, Jobs, JobWriter, ServiceSettings
from bitpress_service.web.forms import job_form, read_job
from bitpress_service.web.login import Form, SessionRoute, read_form
from bitpress_service.web.rendering import render

router = APIRouter(prefix="/new", route_class=SessionRoute)

FIRST_METHOD = "spqr"


@router.get("")
async def form(request: Request, caller: JobWriter, jobs: Jobs, like: str = "", method: str = "") -> Response:
    """An empty form, or one filled in `like` another job."""
    spec: dict[str, Any] = {}
    if like:
        spec = (await jobs.get(like, caller.tenant)).spec.model_dump(mode="json")
    if method in METHODS and method != spec.get("method", {}).get("kind"):
        spec["method"] = {"kind": method}
    return _form(request, spec, secrets.token_hex(8))


@router.post("/method")
async def switch_method(request: Request, _: JobWriter) -> Response:
    """The form with the parameters of the method that is chosen now."""
    posted = await read_form(request)
    template = "method_fields.html" if "hx-request" in request.headers else "new.html"
    data = read_job(posted)
    _drop_defaults(data["method"], dict(posted).get("shown", ""))
    return _form(request, data, _once(posted), template)


@router.post("/plan")
async def plan(request: Request, caller: JobWriter, jobs: Jobs, sources: AllowedSources) -> Response:
    """What the job would need, beside the form as it was posted."""
    posted = await read_form(request)
    template = "new_form.html" if "hx-request" in request.headers else "new.html"
    data, once = read_job(posted), _once(posted)
    try:
        spec = parse_spec(data)
    except InvalidJob as error:
        return _form(request, data, once, template, error=error)
    try:
        planned = await plan_routes.plan(PlanRequest.of(spec), caller, jobs, sources)
    except BitpressError as error:
        return _form(request, data, once, template, spec=spec, error=error)
    return _form(request, data, once, template, spec=spec, plan=planned)


@router.post("")
async def submit(
    request: Request,
    caller: JobWriter,
    jobs: Jobs,
    settings: ServiceSettings,
    sources: AllowedSources,
    response: Response,
) -> Response:
    posted = await read_form(request)
    data, once = read_job(posted), _once(posted)
    try:
        spec = parse_spec(data)
        # Sent twice, the same form is one job; corrected in between, it is another.
        key = f"ui-{once}-{hashlib.sha256(canonical_json(data).encode()).hexdigest()[:32]}"
        job = await job_routes.submit(spec, caller, jobs, settings, sources, response, idempotency_key=key)
    except BitpressError as error:
        return _form(request, data, once, error=error)
    return RedirectResponse(f"/ui/jobs/{job.id}", 303)


def _drop_defaults(method: dict[str, Any], shown: str) -> None:
    """Leave out what nobody wrote: the defaults of the method that was shown are not those of another.

    What the other has no default for stays.
    """
    if shown not in METHODS or "kind" not in method:
        return
    wanted = METHODS[method["kind"]].model_fields
    for name, field in METHODS[shown].model_fields.items():
        if name != "kind" and name in method and method[name] == field.default and not wanted[name].is_required():
            del method[name]


def _once(posted: Form) -> str:
    return dict(posted).get("once", "")[:64] or secrets.token_hex(8)


def _form(
    request: Request,
    data: dict[str, Any],
    once: str,
    template: str = "new.html",
    *,
    spec: JobSpec | None = None,
    plan: PlanReport | SweepPlanReport | None = None,
    error: BitpressError | None = None,
) -> Response:
    """The form filled with `data`; `spec` is what it says when that is valid, `error` what was refused."""
    kind = data.get("method", {}).get("kind", FIRST_METHOD)
    errors = {path: text.removeprefix("Value error, ") for path, text in error.details} if error else {}
    sections = job_form(data, errors, kind)
    by_name = {section.path: section for section in sections}
    return render(
        request,
        template,
        422 if error and "hx-request" not in request.headers else 200,
        sections=sections,
        method=by_name["method"],
        kind=kind,
        methods=METHODS,
        once=once,
        spec=spec,
        plan=plan,
        error=error,
        advice=advice(error.code) if error else "",
    )
