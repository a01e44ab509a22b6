"""Edits of the objects of a level: rename, merge, hide, show, delete, undo. The original result never changes.

`operated` computes the next state of the edits, `applied` the edited masks and objects; both are pure functions.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from uvos import rle
from uvos.contract import ManifestLevel, ManifestObject, RleDocument, RleFrame, RleObject, Schema, StrictSchema
from uvos.errors import InvalidEdit

MAX_OPERATIONS = 100
MAX_NAMED = 20  # object ids in an error message

ObjectId = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Rename(StrictSchema):
    """Give an object a name, which becomes its class in the export formats."""

    op: Literal["rename"] = Field("rename", examples=["rename"])
    """Operation."""
    id: ObjectId = Field(examples=[1])
    """Object id."""
    name: Name | None = Field(examples=["koi"])
    """Name of at most 64 characters; null or an empty name removes it."""


class Merge(StrictSchema):
    """Merge objects into one, which keeps its id, colour and name."""

    op: Literal["merge"] = Field("merge", examples=["merge"])
    """Operation."""
    ids: list[ObjectId] = Field(examples=[[1, 3]])
    """Ids of at least two objects."""
    into: ObjectId | None = Field(None, examples=[1])
    """The one of `ids` that remains. Default: the first."""


class Hide(StrictSchema):
    """Leave objects out of the picture and of every export, until `show`."""

    op: Literal["hide"] = Field("hide", examples=["hide"])
    """Operation."""
    ids: list[ObjectId] = Field(min_length=1, examples=[[2]])
    """Object ids."""


class Show(StrictSchema):
    """Show hidden objects again."""

    op: Literal["show"] = Field("show", examples=["show"])
    """Operation."""
    ids: list[ObjectId] = Field(min_length=1, examples=[[2]])
    """Object ids."""


class Only(StrictSchema):
    """Show these objects and hide all others."""

    op: Literal["only"] = Field("only", examples=["only"])
    """Operation."""
    ids: list[ObjectId] = Field(min_length=1, examples=[[1]])
    """Object ids."""


class Delete(StrictSchema):
    """Remove objects from the list and from every export; `undo` and `reset` restore them."""

    op: Literal["delete"] = Field("delete", examples=["delete"])
    """Operation."""
    ids: list[ObjectId] = Field(min_length=1, examples=[[2]])
    """Object ids."""


class Undo(StrictSchema):
    """Take back the last request that has not been taken back; the only operation of its request."""

    op: Literal["undo"] = Field("undo", examples=["undo"])
    """Operation."""


class Reset(StrictSchema):
    """Return to the original objects; `undo` takes it back."""

    op: Literal["reset"] = Field("reset", examples=["reset"])
    """Operation."""


Operation = Rename | Merge | Hide | Show | Only | Delete | Undo | Reset


class ObjectPatch(StrictSchema):
    """Operations on the objects of a level, in order: all are applied, or none. They are undone together."""

    operations: list[Annotated[Operation, Field(discriminator="op")]] = Field(
        min_length=1,
        max_length=MAX_OPERATIONS,
        examples=[[{"op": "merge", "ids": [1, 3]}, {"op": "rename", "id": 1, "name": "koi"}]],
    )
    """At most 100 operations."""

    @model_validator(mode="after")
    def _undo_is_alone(self) -> Self:
        if len(self.operations) > 1 and any(isinstance(operation, Undo) for operation in self.operations):
            raise ValueError("undo must be the only operation of a request")
        return self


class EditedObject(ManifestObject):
    """One object of a level after the edits."""

    name: str | None = Field(None, examples=["koi"])
    """Name that a user gave it."""
    hidden: bool = False
    """Whether the object is left out of the exports."""
    members: list[int] = Field(examples=[[1, 3]])
    """Ids of the original objects that it consists of, its own included."""


class EditedObjects(Schema):
    """The objects of a level after the edits."""

    tau: float = Field(examples=[1.0])
    """Merge threshold of the level, nats."""
    version: int = Field(ge=0, examples=[2])
    """Version of the edits, 0 without any; also the ETag."""
    can_undo: bool = False
    """Whether there is an edit to undo."""
    objects: list[EditedObject]
    """Objects, hidden ones included, ordered by id."""


class EditState(StrictSchema):
    """The edits of a level: what differs from the original result."""

    names: dict[int, str] = Field(default_factory=dict)
    merged: dict[int, int] = Field(default_factory=dict)
    """The object that each merged object is part of now, which is not merged itself."""
    hidden: frozenset[int] = frozenset()
    deleted: frozenset[int] = frozenset()

    def is_listed(self, object_id: int) -> bool:
        return object_id not in self.merged and object_id not in self.deleted

    def members(self, object_id: int) -> set[int]:
        """The original objects of an object."""
        return {object_id} | {part for part, whole in self.merged.items() if whole == object_id}


class EditRecord(StrictSchema):
    """One version of the edits of a level, as stored."""

    at: datetime
    state: EditState
    undo_to: int | None
    """Version whose state `undo` restores, 0 for the original; None if there is nothing to undo."""


def operated(state: EditState, operations: Iterable[Operation], level: ManifestLevel) -> EditState:
    """The state after operations other than `undo`.

    Raises:
        InvalidEdit: an object does not exist, or there is nothing to merge.
    """
    original = [item.id for item in level.objects]
    for operation in operations:
        state = _operated(state, operation, original)
    return state


def _operated(state: EditState, operation: Operation, original: list[int]) -> EditState:
    match operation:
        case Reset():
            return EditState()
        case Rename(id=object_id, name=name):
            _check_listed(state, [object_id], original)
            names = {**state.names, object_id: name or ""}
            return state.model_copy(update={"names": {item: text for item, text in names.items() if text}})
        case Merge():
            return _merged(state, operation, original)
        case Hide(ids=ids) | Show(ids=ids) | Only(ids=ids) | Delete(ids=ids):
            _check_listed(state, ids, original)
    match operation:
        case Hide(ids=ids):
            return state.model_copy(update={"hidden": state.hidden | set(ids)})
        case Show(ids=ids):
            return state.model_copy(update={"hidden": state.hidden - set(ids)})
        case Only(ids=ids):
            listed = {object_id for object_id in original if state.is_listed(object_id)}
            return state.model_copy(update={"hidden": frozenset(listed - set(ids))})
        case Delete(ids=ids):
            return state.model_copy(update={"deleted": state.deleted | set(ids), "hidden": state.hidden - set(ids)})
    raise AssertionError(operation)  # undo, which the log of versions resolves


def _merged(state: EditState, operation: Merge, original: list[int]) -> EditState:
    _check_listed(state, operation.ids, original)
    if len(set(operation.ids)) < 2:
        raise InvalidEdit(
            f"merge needs at least 2 different objects, got {len(set(operation.ids))}",
            limit=2,
            actual=len(set(operation.ids)),
        )
    into = operation.ids[0] if operation.into is None else operation.into
    if into not in operation.ids:
        raise InvalidEdit(f"into must be one of the merged objects {_listing(operation.ids)}, got {into}", actual=into)
    parts = set(operation.ids) - {into}
    merged = {item: into if whole in parts else whole for item, whole in state.merged.items()}
    names = {item: name for item, name in state.names.items() if item not in parts}
    return state.model_copy(
        update={"merged": merged | dict.fromkeys(parts, into), "names": names, "hidden": state.hidden - parts}
    )


def _check_listed(state: EditState, ids: Iterable[int], original: list[int]) -> None:
    """Raise InvalidEdit for an object that does not exist, with the reason and the objects that do."""
    for object_id in ids:
        if object_id in original and state.is_listed(object_id):
            continue
        if object_id in state.merged:
            reason = f"object {object_id} was merged into object {state.merged[object_id]}"
        elif object_id in state.deleted:
            reason = f"object {object_id} was deleted, and undo or reset restores it"
        else:
            reason = f"there is no object {object_id}"
        known = [item for item in original if state.is_listed(item)]
        listing = f"the objects of this level are {_listing(known)}" if known else "this level has no objects"
        raise InvalidEdit(f"{reason}: {listing}", limit=_listing(known) or None, actual=object_id)


def _listing(ids: list[int]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(map(str, ids[:MAX_NAMED])) + more


def edited_objects(state: EditState, document: RleDocument, level: ManifestLevel) -> list[EditedObject]:
    """The objects after the edits, hidden ones included; `document` and `level` are the original ones."""
    summaries = {item.id: item for item in level.objects}
    objects = []
    for summary in level.objects:
        if not state.is_listed(summary.id):
            continue
        members = sorted(state.members(summary.id) & summaries.keys())
        if len(members) > 1:
            summary = _joint_summary(summary, [summaries[member] for member in members], document)
        edits = {"name": state.names.get(summary.id), "hidden": summary.id in state.hidden, "members": members}
        objects.append(EditedObject.model_validate(summary.model_dump() | edits))
    return objects


def applied(state: EditState, document: RleDocument, level: ManifestLevel) -> tuple[RleDocument, ManifestLevel]:
    """The masks and the objects that the edits show. Ids and colours remain those of the original objects."""
    objects = [item for item in edited_objects(state, document, level) if not item.hidden]
    whole_of = {member: item.id for item in objects for member in item.members}
    edited = document.model_copy(
        update={
            "names": {item.id: item.name for item in objects if item.name is not None},
            "frames": [_edited_frame(frame, whole_of) for frame in document.frames],
        }
    )
    return edited, level.model_copy(update={"objects": objects})


def _edited_frame(frame: RleFrame, whole_of: dict[int, int]) -> RleFrame:
    parts: dict[int, list[RleObject]] = {}
    for item in frame.objects:
        if item.id in whole_of:
            parts.setdefault(whole_of[item.id], []).append(item)
    objects = [
        RleObject(id=whole, rle=items[0].rle if len(items) == 1 else rle.union([item.rle for item in items]))
        for whole, items in sorted(parts.items())
    ]
    return frame.model_copy(update={"objects": objects})


def _joint_summary(summary: ManifestObject, members: list[ManifestObject], document: RleDocument) -> ManifestObject:
    """The summary of merged objects; scores are means weighted by the pixels of each."""
    ids = {member.id for member in members}
    areas = {
        index: sum(rle.area(item.rle) for item in frame.objects if item.id in ids)
        for index, frame in enumerate(document.frames)
        if any(item.id in ids for item in frame.objects)
    }
    height, width = document.size
    weights = [member.area * member.frames for member in members]
    total = sum(weights) or 1.0
    scores = [member.object_score for member in members]
    mean_score = None
    if None not in scores:
        mean_score = sum(weight * (score or 0.0) for weight, score in zip(weights, scores, strict=True)) / total
    return summary.model_copy(
        update={
            "area": sum(areas.values()) / (height * width * max(1, len(areas))),
            "first_frame": min(areas, default=summary.first_frame),
            "last_frame": max(areas, default=summary.last_frame),
            "frames": len(areas),
            "background_score": sum(
                weight * member.background_score for weight, member in zip(weights, members, strict=True)
            )
            / total,
            "object_score": mean_score,
        }
    )
