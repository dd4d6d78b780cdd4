"""ModelsLab's enterprise API: requests, answers, operations, delivery into an own bucket."""
