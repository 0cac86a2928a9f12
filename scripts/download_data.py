"""Download robomimic's human demonstrations with robomimic's own downloader."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("data download")
