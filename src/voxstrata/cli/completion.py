"""voxstrata completion"""

import click
from click.shell_completion import get_completion_class

from voxstrata.cli.saying import say

_SHELLS = {
    "bash": ("~/.bashrc", 'eval "$(voxstrata completion bash)"'),
    "zsh": ("~/.zshrc", 'eval "$(voxstrata completion zsh)"'),
    "fish": ("~/.config/fish/config.fish", "voxstrata completion fish | source"),
}


@click.command(short_help="Have the shell complete commands, options and paths.")
@click.argument("shell", type=click.Choice(list(_SHELLS)), required=False)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print what makes SHELL complete commands, options and paths. Without SHELL, say where to put it.

    \b
    Example:
      eval "$(voxstrata completion bash)"
    """
    if shell is None:
        say("Put this line at the end of the file of your shell, and open a new shell:\n")
        say("\n".join(f"  {name:<5}{file:<28}{line}" for name, (file, line) in _SHELLS.items()))
        return
    kind = get_completion_class(shell)
    assert kind is not None
    say(kind(ctx.find_root().command, {}, "voxstrata", "_VOXSTRATA_COMPLETE").source())
