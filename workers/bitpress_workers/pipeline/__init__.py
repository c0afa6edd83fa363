"""One job from spec to artifact: plan, calibrate and compress block by block, evaluate, report, publish."""
