"""What MLflow runs to load a bundle: a copy of this file lies in every registered bundle, so it holds no logic."""

from mlflow.models import set_model

from tasks.serving import FindingsModel

set_model(FindingsModel())
