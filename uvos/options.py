"""Command line options derived from the job parameters of the contract."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from uvos.contract import Problem, SegmentParams
from uvos.errors import InvalidParameters

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
GIVEN = "given"
"""The parameter of a command that receives the options."""


def parameter_options(*, omit: Collection[str] = (), defaults: Mapping[str, object] | None = None) -> Decorator:
    """Decorator: replace the parameter `given` of a command by one option for each job parameter.

    Types and help texts come from the fields of `SegmentParams`. The command receives the options that the user gave,
    as a dict by field name; `parse_options` validates them and fills in the defaults.

    Args:
        omit: Fields without an option.
        defaults: Defaults that differ from the contract, for the help texts; the command applies them.
    """
    fields = {name: field for name, field in SegmentParams.model_fields.items() if name not in omit}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            options = {name: arguments.pop(name) for name in fields}
            command(**arguments, **{GIVEN: {name: value for name, value in options.items() if value is not None}})

        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.name == GIVEN:
                parameters += [_option(name, field, (defaults or {}).get(name)) for name, field in fields.items()]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def parse_options(given: Mapping[str, object]) -> SegmentParams:
    """Validate options and fill in the defaults of the contract.

    Raises:
        InvalidParameters: options are invalid; the message names all of them.
    """
    try:
        return SegmentParams.model_validate(given)
    except ValidationError as error:
        mistakes = [
            _mistake(item["loc"][0] if item["loc"] else "", item["msg"], item["input"] if item["loc"] else None)
            for item in error.errors()
        ]
        raise InvalidParameters("; ".join(mistakes)) from error


def in_options(problem: Problem) -> str:
    """The detail of a problem of the service, with options in place of form fields."""
    if not problem.errors:
        return problem.detail
    return "; ".join(_mistake(item.field.partition(".")[0], item.message, item.actual) for item in problem.errors)


def _mistake(field: object, message: str, value: object) -> str:
    option = "--" + str(field).replace("_", "-") if field in SegmentParams.model_fields else str(field)
    sentence = f"{option}: {message.removeprefix('Value error, ')}".removeprefix(": ")
    return sentence if value is None else f"{sentence}, got {value!r}"


def _option(name: str, field: FieldInfo, default: object) -> inspect.Parameter:
    """The option of a field."""
    default = field.default if default is None else default
    option = typer.Option(
        None,
        help=" ".join((field.description or "").split()),
        show_default=False if default is None else _shown(default),
    )
    annotation = _option_type(field.annotation)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _option_type(annotation: Any) -> Any:
    """A field's type without constraints and without None."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _option_type(next(argument for argument in arguments if argument is not NoneType))
    if origin is Annotated:
        return _option_type(arguments[0])
    return GenericAlias(list, (_option_type(arguments[0]),)) if origin is list else annotation


def _shown(default: object) -> str:
    if isinstance(default, list):
        return ", ".join(map(_shown, default))
    return str(default) if isinstance(default, str) else f"{default:g}"
