"""What is fixed about every data set: licence, classes, image size, statistics, files on disk."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layout:
    """One way a set is kept on disk: every file of `files`, in one of `folders` of the root.

    Each file may also be gzipped (`NAME.gz`) where `gzipped` is set. The root itself, `.`, is
    tried after the named folders.
    """

    format: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    gzipped: bool = False


@dataclass(frozen=True)
class SetFacts:
    """`mean` and `std` are per channel, of pixels scaled to 0..1.

    `image_size`, `padding`, `scale`, `crop_pct` and `interpolation` are the defaults of the
    configuration for this set. `has_validation` says whether the set brings a validation split.
    """

    licence: str
    num_classes: int | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    padding: int
    has_validation: bool
    in_memory: bool = True
    scale: tuple[float, float] | None = None
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    class_names: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()


FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR10_CLASSES = tuple(_CIFAR10.split())

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100.split())

_FASHION_SUBSET = SetFacts(
    licence="MIT, Zalando SE",
    num_classes=10,
    channels=1,
    mean=(0.286,),
    std=(0.353,),
    image_size=28,
    padding=2,
    has_validation=True,
    class_names=FASHION_CLASSES,
)

# Neither CIFAR set comes with a licence; its page asks for a citation.
_CIFAR_LICENCE = "none stated; cite Krizhevsky 2009, Learning multiple layers of features"

SETS: dict[str, SetFacts] = {
    "fashion-mnist-subset": _FASHION_SUBSET,
    "fashion-mnist": replace(
        _FASHION_SUBSET,
        has_validation=False,
        layouts=(
            Layout(
                format="idx",
                folders=("fashion-mnist", "FashionMNIST/raw"),
                files=(
                    "train-images-idx3-ubyte",
                    "train-labels-idx1-ubyte",
                    "t10k-images-idx3-ubyte",
                    "t10k-labels-idx1-ubyte",
                ),
                gzipped=True,
            ),
        ),
    ),
    "cifar10": SetFacts(
        licence=_CIFAR_LICENCE,
        num_classes=10,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        image_size=32,
        padding=4,
        has_validation=False,
        class_names=CIFAR10_CLASSES,
        layouts=(
            Layout(
                format="binary",
                folders=("cifar-10-batches-bin",),
                files=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
            ),
            Layout(
                format="python",
                folders=("cifar-10-batches-py",),
                files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
            ),
        ),
    ),
    "cifar100": SetFacts(
        licence=_CIFAR_LICENCE,
        num_classes=100,
        channels=3,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        image_size=32,
        padding=4,
        has_validation=False,
        class_names=CIFAR100_CLASSES,
        layouts=(
            Layout("binary", folders=("cifar-100-binary",), files=("train.bin", "test.bin")),
            Layout("python", folders=("cifar-100-python",), files=("train", "test")),
        ),
    ),
    "imagefolder": SetFacts(
        licence="as the owner of the folder states",
        num_classes=None,
        channels=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        image_size=224,
        padding=0,
        has_validation=True,
        in_memory=False,
        scale=(0.08, 1.0),
        crop_pct=0.875,
        interpolation="bicubic",
    ),
}
