"""The science of luna: numpy, scipy and torch; knows neither the orchestrator nor the tracker."""
