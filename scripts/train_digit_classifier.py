"""Train the classifier whose features measure digits: `asd-policy images classifier`."""

from asd_policy.cli import script

if __name__ == "__main__":
    script("images classifier")
