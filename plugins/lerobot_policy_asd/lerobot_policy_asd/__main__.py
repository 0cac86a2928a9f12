"""`lerobot-asd convert FOLDER OUT` and `lerobot-asd serve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from asd_policy.core import CAPTURES, DRAFTS
from asd_policy.errors import AsdPolicyError, ConfigError
from lerobot_policy_asd.convert import convert
from lerobot_policy_asd.options import SamplerFields


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the process's exit status: 0, or 1 after an error, which is printed."""
    parser = _parser()
    chosen, rest = parser.parse_known_args(arguments)
    try:
        if chosen.command == "serve":
            from lerobot_policy_asd.serving import serve

            serve(rest)
            return 0
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        fields = SamplerFields(chosen.draft, _window(chosen.window), chosen.capture, not chosen.no_warm_start)
        files = convert(chosen.folder, chosen.out, fields, chosen.as_ddpm)
    except (AsdPolicyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{chosen.out}: {', '.join(files)}")
    print(f"Use it by --policy.path={chosen.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lerobot-asd", description="Exact, fast sampling for lerobot's diffusion policy."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    told = "write a folder that --policy.path= loads as asd_diffusion, with the same weights"
    convert = commands.add_parser("convert", help=told, description=told)
    convert.add_argument("folder", help="lerobot's folder of a diffusion policy, .../pretrained_model")
    convert.add_argument("out", help="the folder to write; it must not exist")
    convert.add_argument("--draft", default=SamplerFields.draft, help=f"{', '.join(DRAFTS)} (%(default)s)")
    convert.add_argument(
        "--window", default=str(SamplerFields.window), help="steps a round speculates, or all (%(default)s)"
    )
    convert.add_argument("--capture", default=SamplerFields.capture, help=f"{', '.join(CAPTURES)} (%(default)s)")
    convert.add_argument("--no-warm-start", action="store_true", help="guess nothing from the chunk before")
    convert.add_argument("--as-ddpm", action="store_true", help="sample a DDIM checkpoint by the DDPM of its betas")
    told = "lerobot's asynchronous policy server, for asd_diffusion too; takes lerobot's own arguments"
    commands.add_parser("serve", help=told, description=told, add_help=False)
    return parser


def _window(word: str) -> int | None:
    if word == "all":
        return None
    if not word.isdecimal():
        raise ConfigError(f"window is {word!r}; expected a positive integer or all.")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
