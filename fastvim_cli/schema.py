"""`fastvim schema`: what an ablation file may hold."""

import click


@click.command("schema")
@click.option("--keys", is_flag=True, help="Only list the dotted names of a run's values.")
def command(keys: bool):
    """Print the JSON Schema of ablation files, with which editors complete and check them.

    \b
    Example:
      fastvim schema > fastvim.schema.json
      # then, as the first line of a YAML file:
      # yaml-language-server: $schema=fastvim.schema.json
    """
    import json

    from fastvim.experiments.schema import json_schema, known_keys

    click.echo("\n".join(known_keys()) if keys else json.dumps(json_schema(), indent=2))
