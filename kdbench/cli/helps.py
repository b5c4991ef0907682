"""What ``--help`` says: examples first. Names come from files, so that nothing heavy is imported to say them."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence

from kdbench.cli.overrides import choices

WIDTH = 80

VARIABLES = {
    "KDBENCH_DATA": "the folder of prepared data sets (default data/ in the cache folder)",
    "KDBENCH_CACHE": "teachers, what they say of each view (gigabytes), downloads, reports of errors (default kdbench/ "
    "in $XDG_CACHE_HOME, or in ~/.cache)",
    "XDG_CACHE_HOME": "the user's cache folder, an absolute path",
    "KDBENCH_DEBUG": "1: an error that kdbench cannot explain is shown with its traceback",
    "OMP_NUM_THREADS": "how many threads PyTorch has: give each of several jobs on one machine its part",
    "CUDA_VISIBLE_DEVICES": "which GPUs there are for kdbench",
    "ONEDNN_MAX_CPU_ISA": "(and DNNL_MAX_CPU_ISA, ATEN_CPU_CAPABILITY) caps on the processor's instructions; teachers "
    "are then computed accordingly, and records name the cap",
    "CC": "the C compiler of torch.compile on a GPU",
    "SLURM_*": "what a Slurm job was granted: memory and processors, of which a cohort's size follows",
}
"""The environment variables that kdbench heeds, with what each does."""

RUN = (
    "Train the cells of a grid, then show the tables that they stand in. A cell is one point of method x pair x data "
    "set x protocol x seed."
)
RUN_EXAMPLES = {
    "experiment=quickstart": "a first table",
    "method=dkd pair=resnet56-resnet20 dataset=cifar100": "one cell",
    "'method=[scratch,kd,dkd]' 'seed=[0,1,2]'": "a grid in one job",
    "-m method=kd method.kd.temperature=1,2,4": "one job for each value",
    "method=kd protocol.epochs=60 force=true": "anew, though done",
    "'method=[kd,dkd]' debug=fast": "a try; keeps nothing",
    "--config-dir myconf method=mine": "a method of your own",
    "scenario=semi_supervised dataset.scenario.labelled=100": "another problem",
    "dataset=shapes_masks pair=fpn-resnet20-fpn-resnet8": "another task",
    "method=average_kd 'teachers=[{seed: 1},{seed: 2}]'": "several teachers",
    "teacher.epochs=40 teacher.dataset.per_class=null": "a teacher's recipe",
    "teacher=assistant teacher.teacher.name=resnet110": "one that had a teacher",
    "tour=survey": "every family",
    "reproduction=keras_example": "published numbers",
}
GRAMMAR = {
    "'method=[kd,dkd]' 'seed=[0,1,2]'": "all of these in one job, side by side: they share batches and teacher, and "
    "one progress bar; quotes are for the shell",
    "-m KEY=A,B KEY=range(0,3)": "one job for each combination, as Hydra's sweeps; cluster=NAME sends them elsewhere",
    "+KEY=VALUE, ~KEY": "a setting that is not there yet; leave one out (~logger)",
    "--cfg job": "show all settings, with yours in place, and train nothing",
}
RUN_GRAMMAR = {
    **GRAMMAR,
    "force=true": "train again what is done. Else finished cells are skipped and interrupted ones resume, bit for bit: "
    "after Ctrl-C, a kill or a crash just repeat the command",
    "debug=fast": "a few batches of everything, to see whether it runs; nothing is stored",
    "verbose=true": "all that there is to know about a table below it",
    "paths.results=DIR, paths.work=DIR": "where records and tables go (default results), and what is unfinished (runs)",
}
TEACHER_EXAMPLES = {
    "pair=resnet56-resnet20 dataset=cifar100 protocol=lite": "the pair's first network",
    "teacher.name=vgg13 teacher.seed=1 teacher.epochs=40": "another, with its own recipe",
    "teacher=assistant teacher.teacher.name=resnet110": "one that had a teacher",
}
COMPOSED: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "run": (RUN, RUN_EXAMPLES, RUN_GRAMMAR),
    "tune": (
        "Search for good settings of methods, on validation images alone, with as many trials for the control as for "
        "each. A search looks where a method's YAML says under `search`, or where the command gives a range instead. "
        "Interrupted, it goes on where it was when the command is repeated; so it does with more trials.",
        {
            "method=dkd dataset.val=300": "300 training images judge, and the test images do not",
            "'method=[dkd,rkd]' 'seed=[0,1]' dataset.val=300": "a study of each; a trial is the mean over seeds",
            "method=dkd 'method.dkd.beta=interval(0.5,10)' dataset.val=300": "in this range, and in no other of dkd's",
            "method=kd method.kd.temperature=4 dataset.val=300": "what has a value is not searched for",
            "method=dkd trials=40 control=null dataset.val=300": "more trials, and no control",
            "method=dkd pair=resnet56-resnet20 dataset.val=300 write=myconf": "keep the best; `kdbench run "
            "--config-dir myconf pair=resnet56-resnet20-tuned method=dkd` takes it up",
        },
        {
            "trials=20": "how many settings are tried of each method; the first is the one that ships",
            "control=NAME": "who is tuned as hard, by default KD or the control of the data's task; null for none",
            "write=FOLDER": "keep the best values in FOLDER/pair/TEACHER-STUDENT-tuned.yaml",
            "cluster=NAME hydra.sweeper.n_jobs=N": "N settings at a time",
            "hydra/sweeper/sampler=NAME": "proposes them in another way than TPE",
            "KEY=VALUE": "as for `kdbench run`",
        },
    ),
    "teacher import": (
        "Weights from elsewhere become a teacher: measured on the data's test images as it will be fed, and known by "
        "their hash. A file is read without running code: safetensors, or what torch.save made of a state dict, also "
        "inside a dict, and with `module.` or the like before all keys. Its network is the pair's teacher (or "
        "teacher.name): of a zoo, a library or your own. A library's weights bring their network, their mean and std, "
        "and the size that they see images at.",
        {
            "lab.pth pair=resnet56-resnet20 dataset=cifar100": "weights of your own",
            "lab.safetensors pair.teacher=mynet.Net dataset=digits": "for a network of your own",
            "torchvision/resnet50 head=replace dataset=cifar100 protocol=short": "a new head, fine-tuned",
            "timm/resnet18.a1_in1k@64 head=replace dataset=tiny_imagenet": "at another size",
        },
        {
            "SOURCE": "FILE, torchvision/NAME[.WEIGHTS] or timm/NAME[.TAG], first; NAME@SIZE has it look at images at "
            "that size, as pair.teacher=NAME@SIZE does for a file",
            "head=replace": "put a new head for the data's classes in the place of the old one, and fine-tune the "
            "whole by the protocol, as `kdbench teacher train` does",
            "teacher.dataset.mean=[...] teacher.dataset.std=[...]": "what pixels a file's network learned from, where "
            "these are not the data's",
            "teacher.weights=HASH": "has it teach, in `kdbench run`; HASH is what was printed",
        },
    ),
    "teacher train": (
        "Train the teachers of a job, unless they are there: those that `kdbench run` with the same settings would "
        "train first. Many jobs on a cluster then need not wait for one of them.",
        TEACHER_EXAMPLES,
        GRAMMAR,
    ),
    "teacher cache": (
        "Have a job's teacher look at all views of the images that `seed=` and `protocol=` will show, ahead of "
        "training, and keep what it says on a disk. What is there is not computed again.",
        {
            "pair=resnet56-resnet20 dataset=cifar100 'seed=[0,1,2]'": "views of three seeds",
            "pair=resnet56-resnet20 dataset=cifar100 --all": "every view there is",
        },
        {
            **GRAMMAR,
            "--all": "every view that the data set has (162 of an image with crop and flip), whatever the seeds",
        },
    ),
}
"""Of commands that Hydra composes: what they do, examples, and what else may be said."""
GROUPS = (
    "method",
    "pair",
    "dataset",
    "scenario",
    "protocol",
    "teacher",
    "experiment",
    "reproduction",
    "tour",
    "cluster",
    "logger",
)


def composed(name: str, args: Sequence[str]) -> str:
    """The help of a command that Hydra composes, with the choices that `args` add by ``--config-dir``."""
    about, examples, grammar = COMPOSED[name]
    source = "SOURCE " if "SOURCE" in grammar else ""
    sweep = "[-m] " if any(word.startswith("-m ") for word in grammar) else ""
    lines = [
        f"usage: kdbench {name} {source}{sweep}[--config-dir DIR] KEY=VALUE ...",
        "",
        textwrap.fill(about, WIDTH),
        "",
    ]
    lines += [f"examples, behind `kdbench {name}`:", *listed(examples), ""]
    lines += ["how to say it:", *listed(grammar, 24), "", "names, for GROUP=NAME:"]
    for group in GROUPS:
        names = [choice for choice in choices(group, args) if choice != "default" or group == "teacher"]
        wrapped = textwrap.wrap(f"{group}: {', '.join(names)}", WIDTH - 4, break_on_hyphens=False)
        lines += [f"  {wrapped[0]}", *(f"    {line}" for line in wrapped[1:])]
    lines += [
        "",
        "`kdbench methods` says what each method is and asks for, `kdbench data list` what",
        "task each data set has, `kdbench --help` which environment variables there are;",
        "--hydra-help shows Hydra's own flags.",
    ]
    return "\n".join(lines)


def listed(entries: Mapping[str, str], widest: int = 52) -> list[str]:
    """Lines ``WORD   what it is``, aligned; behind a word longer than `widest` the text begins on the next line."""
    column = min(max(map(len, entries)), widest) + 4
    lines: list[str] = []
    for word, what in entries.items():
        text = textwrap.wrap(what, WIDTH - column, break_on_hyphens=False, break_long_words=False)
        lines.append(f"  {word}" if len(word) + 4 > column else f"  {word:{column - 2}}{text.pop(0)}")
        lines += [" " * column + line for line in text]
    return lines


def block(title: str, entries: Mapping[str, str]) -> str:
    """A titled list, for the end of a parser's help."""
    return "\n".join([f"{title}:", *listed(entries)])


def described(parser: argparse.ArgumentParser, entries: Mapping[str, str]) -> None:
    """Give a parser examples, and have it leave their lines alone."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if parser.description and "\n" not in parser.description:
        parser.description = textwrap.fill(parser.description, WIDTH)
    parser.epilog = block("examples", entries)


def asks_for_more(parser: argparse.ArgumentParser) -> None:
    """A command that is nothing without a further word shows its help, and exits as one that did nothing."""

    def show(options: argparse.Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(command=show)
