"""`fastvim list`: the ablations that come with the package."""

import click


@click.command("list")
def command():
    """List the ablations that come with fastvim.

    \b
    Example:
      fastvim list
    """
    from fastvim.experiments.experiment import load, shipped
    from fastvim_cli.display import console, table

    rows = table("ablation", "question", "variants", "profiles")
    for name in shipped():
        experiment = load(name)
        profiles = [
            f"{profile} (default)" if profile == experiment.default_profile else profile
            for profile in experiment.profiles
        ]
        rows.add_row(
            name,
            experiment.question,
            ", ".join(experiment.variants),
            ", ".join(profiles),
        )
    console().print(rows)
