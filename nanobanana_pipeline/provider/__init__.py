"""The other side of the money: ModelsLab's API and the images it hands out."""
