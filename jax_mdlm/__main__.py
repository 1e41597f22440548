"""Says what there is: `python -m jax_mdlm`."""

from jax_mdlm import __version__, command

COMMANDS = {
    "train": "trains or fine-tunes: --config NAME --workdir DIR",
    "prepare": "rows tokenised once, by all cores: --config NAME --output DIR",
    "sample": "prompts in, text out; chats, traces, pages",
    "evaluate": "error rates, bounds, interventions, harness, judges",
    "convert": "PyTorch checkpoints in and out",
    "plan": "will it fit? compiles for a TPU slice that is not there",
}


def main() -> None:
    """Prints version, commands and shipped configs."""
    print(f"jax_mdlm {__version__}\n")
    for name, use in COMMANDS.items():
        print(f"  python -m jax_mdlm.{name:<10} {use}")
    print(f"\nEach says more with --help. Shipped configs: {', '.join(command.shipped_configs())}")


if __name__ == "__main__":
    main()
