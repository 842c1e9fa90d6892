"""`autoseg doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from autoseg.cli.options import output_options
from autoseg.cli.output import Output


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@output_options
def doctor(folder: Path, output: Output) -> int:
    """What this machine can do: python, torch, devices and their numerics, memory, disk, parts, name collisions.

    FOLDER is where data would be; its free disk space is reported.  Exit code 0 if AutoSeg works here, else 2.
    """
    from autoseg.api.doctor import OPTIONAL, Checkup, examine
    from autoseg.core.records import to_data

    found: Checkup = examine(folder)
    output.emit({**to_data(found), "works": found.works})
    memory = f"{_or_unknown(found.memory_gib, '{} GiB')}, {_or_unknown(found.available_memory_gib, '{} GiB')} free"
    output.say(f"AutoSeg   {found.autoseg} in {found.location}")
    output.say(f"Python    {found.python} on {found.system}")
    output.say(f"cores     {found.cores}, torch uses {_or_unknown(found.threads, '{}')}")
    output.say(f"memory    {memory}")
    output.say(f"disk      {found.disk_gib} GiB free in {folder.absolute()}")
    output.table(
        ("device", "what", "memory", "bfloat16"),
        [
            (
                device.name,
                device.description,
                _or_unknown(device.memory_gib, "{} GiB"),
                "yes" if device.bfloat16 else "no",
            )
            for device in found.devices
        ],
    )
    output.table(("networks", "numerics"), list(found.numerics.items()))
    output.say("parts     " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in found.parts.items()))
    for name, version in found.optional.items():
        output.say(f"optional  {name} {version or 'not installed'}: {OPTIONAL[name]}")
    for finding in found.findings:
        output.say(f"{finding.severity:<9} {finding.what}\n{'':9} -> {finding.do}")
    output.say("AutoSeg works here." if found.works else "AutoSeg does not work here yet.")
    return 0 if found.works else 2


def _or_unknown(value: object, text: str) -> str:
    return "unknown" if value is None else text.format(value)
