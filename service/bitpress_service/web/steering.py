"""What may be done to a job from its page, and the buttons for it."""

from dataclasses import dataclass

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from bitpress.jobs import JobState
from bitpress_service.routes import jobs as job_routes
from bitpress_service.routes.dependencies import Artifacts, Jobs, JobWriter, ServiceSettings
from bitpress_service.web.login import SessionRoute

router = APIRouter(prefix="/jobs", route_class=SessionRoute)


@dataclass(frozen=True)
class Action:
    """A button; `question` is asked before what cannot be taken back."""

    name: str
    question: str = ""


_CANCEL = Action("cancel", "Cancel this job? It stops before its next linear.")
_DELETE = Action("delete", "Delete this job and everything it made?")
ACTIONS = {
    JobState.QUEUED: (Action("pause"), _CANCEL),
    JobState.RUNNING: (Action("pause"), _CANCEL),
    JobState.PAUSING: (Action("resume"), _CANCEL),
    JobState.PAUSED: (Action("resume"), _CANCEL),
    JobState.CANCELLING: (),
    JobState.SUCCEEDED: (_DELETE,),
    JobState.FAILED: (Action("retry"), _DELETE),
    JobState.CANCELLED: (Action("retry"), _DELETE),
}


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> Response:
    await job_routes.cancel(job_id, caller, jobs, response)
    return _to_job(job_id)


@router.post("/{job_id}/pause")
async def pause(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> Response:
    await job_routes.pause(job_id, caller, jobs, response)
    return _to_job(job_id)


@router.post("/{job_id}/resume")
async def resume(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> Response:
    await job_routes.resume(job_id, caller, jobs, response)
    return _to_job(job_id)


@router.post("/{job_id}/retry")
async def retry(job_id: str, caller: JobWriter, jobs: Jobs, settings: ServiceSettings, response: Response) -> Response:
    await job_routes.retry(job_id, caller, jobs, settings, response)
    return _to_job(job_id)


@router.post("/{job_id}/delete")
async def delete(job_id: str, caller: JobWriter, jobs: Jobs, artifacts: Artifacts) -> Response:
    await job_routes.delete(job_id, caller, jobs, artifacts)
    return RedirectResponse("/ui/jobs", 303)


def _to_job(job_id: str) -> Response:
    return RedirectResponse(f"/ui/jobs/{job_id}", 303)
