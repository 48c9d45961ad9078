"""`fastvim completion`: the script that teaches a shell to complete fastvim's arguments."""

import click
from click.shell_completion import get_completion_class

# What click's scripts lack: no space after a key, whose value is to follow (fish knows by itself),
# and values with commas, which its script for fish cuts off.
REPAIRS = {
    "bash": (
        "COMPREPLY+=($value)",
        "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace",
    ),
    "zsh": (
        "compadd -U -V unsorted -a completions",
        "compadd -U -V unsorted -S '' -- ${(M)completions:#*=}\n"
        "        compadd -U -V unsorted -- ${completions:#*=}",
    ),
    "fish": ('string split ","', 'string split --max 1 ","'),
}


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str):
    """Print shell completion: names of commands, ablations, profiles, variants and keys.

    \b
    Examples:
      eval "$(fastvim completion bash)"       # in ~/.bashrc
      eval "$(fastvim completion zsh)"        # in ~/.zshrc
      fastvim completion fish > ~/.config/fish/completions/fastvim.fish
    """
    complete = get_completion_class(shell)
    # The script alone; click would first ask for the version of an installed bash.
    script = complete(ctx.find_root().command, {}, "fastvim", "_FASTVIM_COMPLETE")
    found, better = REPAIRS[shell]
    click.echo((script.source_template % script.source_vars()).replace(found, better))
