"""What to do next about an error, by its code: those of `bitpress.errors` and those of plain HTTP."""

ADVICE = {
    "internal": "This is a fault of Bitpress. The service's log has it under the request id; please report it.",
    "invalid-job": "Correct what is named and submit again.",
    "forbidden-address": "Use an https address that can be reached from everywhere.",
    "unauthorized": "Use an API key that exists and has not expired: `bitpress login`, or the page's log-in.",
    "forbidden": "Use a key that has this scope, or ask an administrator for one.",
    "not-found": "Check the address or the id. What belongs to other tenants or was deleted is not found either.",
    "conflict": "Look at its present state, then decide anew.",
    "precondition-failed": "It has changed meanwhile. Read it again, and repeat the change if it is still wanted.",
    "source-not-allowed": "Use a model and texts from the places named, or ask the operator to allow this one.",
    "too-many-requests": "Wait a moment: this key has asked too often.",
    "too-many-jobs": "Wait until some jobs have ended, or cancel what is not needed any more.",
    "too-many-streams": "Close other programs and pages that follow jobs with this key.",
    "unavailable": "Try again in a moment. When it lasts: `bitpress doctor` on the service's machine.",
    "unsupported-model": "Only the decoder families in the README are known; the message says where to describe one.",
    "bad-checkpoint": "Check that the model's directory has config.json, safetensors and a tokenizer.",
    "bad-calibration": "Check that the text can be read by the worker and is long enough for the windows asked for.",
    "numerical-failure": "Raise `damping`, or calibrate with more sequences; the message names the linear.",
    "out-of-memory": "Use fewer or shorter sequences, more devices, or larger ones; a plan shows the need beforehand.",
    "cancelled": "Nothing to do: it was asked to stop.",
    "worker-lost": "Retry the job: a worker died or was cut off. When it repeats, look at the dispatcher's log.",
    "store-failure": "Check the object storage, its address and credentials, and that it is not full; then try again.",
    "bad-config": "Correct the file that is named, or remove it.",
    "bad-artifact": "Fetch the artifact again; when it is still damaged, run the job anew.",
    "gate-failed": "The artifact and its report are there. Spend more bits, try another method, or widen the gate.",
    "load-check-failed": "The artifact is there; do not use it before the reason in the message is understood.",
    "evaluation-failed": "The artifact is there, not measured. The message names what failed; evaluate fewer windows.",
    "bad-request": "Correct the request; /openapi.json says what it may hold.",
    "invalid-request": "Correct what is named; /openapi.json says what the request may hold.",
    "method-not-allowed": "Use one of the methods in the answer's Allow header.",
    "body-too-large": "Send less; the operator sets the limit by BITPRESS_MAX_BODY_BYTES.",
    "range-not-satisfiable": "Ask for a range within the file; the answer's Content-Range says how long it is.",
    "http-error": "Correct the request; /openapi.json says what the service answers.",
}


def advice(code: str) -> str:
    return ADVICE.get(code, ADVICE["internal"])
