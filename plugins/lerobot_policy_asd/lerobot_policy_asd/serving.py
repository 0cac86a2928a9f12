"""lerobot's asynchronous policy server, with `asd_diffusion` among the policies that it accepts.

lerobot's own command for the server loads no plug-ins and has a fixed list of policy types.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lerobot_policy_asd.options import POLICY_TYPE


def serve(arguments: Sequence[str]) -> None:
    """Run lerobot's policy server until it is stopped.

    Args:
        arguments: the server's own, such as `--host=127.0.0.1 --port=8080`.
    """
    from lerobot.async_inference import policy_server

    if POLICY_TYPE not in policy_server.SUPPORTED_POLICIES:
        policy_server.SUPPORTED_POLICIES.append(POLICY_TYPE)
    sys.argv = ["lerobot-asd serve", *arguments]  # lerobot's parser reads the command line itself
    policy_server.serve()
