"""The web application: routes over the stores it is given; nothing global."""

from fastapi import FastAPI

from bitpress_service import problems
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.event_feed import EventFeed
from bitpress_service.jobstore import JobStore
from bitpress_service.keys import Keys
from bitpress_service.metrics import MeasuredRequests, ProcessMetrics, StoreMetrics
from bitpress_service.middleware import BodyLimit, RequestId
from bitpress_service.routes import artifacts as artifact_routes
from bitpress_service.routes import events, system
from bitpress_service.routes import jobs as job_routes
from bitpress_service.routes import keys as key_routes
from bitpress_service.routes import metrics as metric_routes
from bitpress_service.routes import models as model_routes
from bitpress_service.routes import plans as plan_routes
from bitpress_service.routes import reports as report_routes
from bitpress_service.routes import webhooks as webhook_routes
from bitpress_service.settings import Settings
from bitpress_service.sources import Sources
from bitpress_service.web.app import create_web
from bitpress_service.webhooks import Webhooks


def create_app(
    settings: Settings, jobs: JobStore, artifacts: ArtifactStore, keys: Keys, webhooks: Webhooks, metrics: StoreMetrics
) -> FastAPI:
    """Build the API. Call `app.state.feed.close()` when the server is about to stop: open event streams then end."""
    # No /docs: that page would load scripts from a content network.
    app = FastAPI(title="Bitpress", docs_url=None, redoc_url=None, responses=problems.RESPONSES)
    app.state.settings = settings
    app.state.jobs = jobs
    app.state.artifacts = artifacts
    app.state.keys = keys
    app.state.webhooks = webhooks
    app.state.sources = Sources.of(settings)
    app.state.feed = EventFeed(jobs, settings.streams_per_key)
    app.state.metrics = metrics
    app.state.process_metrics = ProcessMetrics(app.state.feed)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestId)
    app.add_middleware(MeasuredRequests, metrics=app.state.process_metrics)
    for routes in (
        job_routes,
        events,
        artifact_routes,
        report_routes,
        plan_routes,
        key_routes,
        model_routes,
        webhook_routes,
        metric_routes,
        system,
    ):
        app.include_router(routes.router)
    app.include_router(system.keyed)
    app.mount("/ui", create_web(app.state))
    return app
