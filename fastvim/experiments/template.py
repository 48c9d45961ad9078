"""The commented file that `fastvim new` writes."""

TEMPLATE = """\
# An ablation: one question, variants that differ in what is asked about, several seeds.
#   fastvim show {file}               what it comes to, and where each value is from
#   fastvim ablate {file} --dry-run   the runs and how long they take
#   fastvim ablate {file}             train, evaluate, compare
# yaml-language-server: $schema=fastvim.schema.json
# (write that file with `fastvim schema > fastvim.schema.json`: editors then complete and check.)
name: {name}

question: >
  Does a larger state help?

# Another ablation, by name or file, of which this one is a change. What is not given here comes
# from there; base, variants and profiles are merged by dotted name, null takes one away.
# extends: pooling-alternation

# Values that all variants share; `fastvim schema --keys` lists them. Dotted names and nested
# mappings mean the same: `model.patch_size: 2` or `model: {{patch_size: 2}}`.
base:
  data:
    name: fashion-mnist-subset    # real images that come with the package
  model:
    name: fastvim_pico            # a preset, or timm/<name>
    patch_size: 2
    schedule: [col, row]          # the axis that each block pools, over and over; [] is Vim
  training:
    epochs: 5
    batch_size: 64                # the global one; micro_batch_size splits it
    lr: 0.002
    warmup_epochs: 1

# The variant that the others are compared with, by seed.
baseline: state-16
variants:
  state-16: {{model.d_state: 16}}
  state-8: {{model.d_state: 8}}
  state-32: {{model.d_state: 32}}

seeds: 3                          # 0, 1, 2; or a list such as [0, 3, 5]
metric: top1                      # top1, top5 or loss, on the test set

# Where and how long; chosen with --profile.
profiles:
  smoke:
    seeds: 1
    data: {{train_images: 200, validation_images: 100, test_images: 100}}
    model: {{name: fastvim_femto, patch_size: 4}}
    training: {{epochs: 2, batch_size: 20, warmup_epochs: 0}}
  quick: {{}}
  standard:
    seeds: 5
    training.epochs: 30
default_profile: quick
"""


def starting_file(name: str) -> str:
    """The text of a new experiment file called `<name>.yaml`."""
    return TEMPLATE.format(name=name, file=f"{name}.yaml")
