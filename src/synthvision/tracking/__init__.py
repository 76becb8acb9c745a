"""The tracking store: runs, nesting, parameters, metrics, data sets, figures and models. The only importer of MLflow.

A study is an MLflow experiment, a pipeline is a parent run, each of its stages is a child run. What runs log goes
through a local journal (`journal`), which a thread sends on (`sender`): a server that dies costs no work and no row.
"""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # medical work: nothing leaves the machine
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # spares the UI seven helper processes
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # a line for every stage; the UI's is printed once
os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # a machine without git is no reason for a warning
# MLflow's own tries go on for minutes; here the sender tries again, and keeps what was not sent.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
