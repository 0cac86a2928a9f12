"""LeRobotDataset (https://huggingface.co/docs/lerobot/lerobot-dataset-v3): 2.x and 3.0 are read, 3.0 written."""
