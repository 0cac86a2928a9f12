"""Settings of every test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test asks the internet; see tests.fake_hub
