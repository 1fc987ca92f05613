"""Training on Ray; nothing outside this folder imports Ray.

Ray reads much of its behaviour from the environment, some of it while it is imported; so these defaults are set here,
before any module of this folder imports it. A value that is set already stays.
"""

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a crash is seen
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every print of a worker appears twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints a box of settings even when it is told to be silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics.jsonl is the record; no csv, json and TensorBoard beside it
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # starting at once; by itself it starts one at a time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run instead of returning half a sweep
}
IN_OWN_CLUSTER = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on 127.0.0.1 alone; else many are open to the network
    "RAY_AUTH_MODE": "token",  # on somebody's cluster its head decides and hands it to the job
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process less: nobody reclaims a laptop
}

ON_CLUSTER = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",  # the driver's word goes to workers, which do not see RAY_ADDRESS
}

for _name, _value in (DEFAULTS | (ON_CLUSTER if os.environ.get("RAY_ADDRESS") else IN_OWN_CLUSTER)).items():
    os.environ.setdefault(_name, _value)
