"""The generated protobuf modules speak Envoy's wire format, judged by an independent codec."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from authz.pb.envoy.config.core.v3 import address_pb2, base_pb2
from authz.pb.envoy.service.auth.v3 import attribute_context_pb2, external_auth_pb2, external_auth_pb2_grpc
from authz.pb.envoy.type.v3 import http_status_pb2

pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")

# The independent library declares its validators in a way that newer releases of pydantic warn of.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    their_core: Any = import_module("envoy_data_plane.envoy.config.core.v3")
    theirs: Any = import_module("envoy_data_plane.envoy.service.auth.v3")
    their_type: Any = import_module("envoy_data_plane.envoy.type.v3")
    their_protobuf: Any = import_module("envoy_data_plane.google.protobuf")
    their_pool: Any = import_module("envoy_data_plane.message_pool").default_message_pool

ROOT = Path(__file__).resolve().parent.parent
MODULES = (address_pb2, base_pb2, attribute_context_pb2, external_auth_pb2, http_status_pb2)
FILES: tuple[FileDescriptor, ...] = tuple(module.DESCRIPTOR for module in MODULES)
ROOTS: dict[str, Any] = {"CheckRequest": theirs.CheckRequest, "CheckResponse": theirs.CheckResponse}
# Every oneof has one, two or three members: six turns take each combination.
TURNS = 6

# A tree is what a message says, free of either library: field name -> (its oneof, its value).
# A scalar is (declared type, value), so that True is not 1 and b"" is not "".
Tree = dict[str, tuple[str | None, Any]]


# --- Messages filled by the independent library ---


def scalar(name: str, kind: str, cls: Any, number: int) -> Any:
    """Make a value that no other field has and no other type of the same wire form can hold."""
    if kind == "enum":
        options = [option for option in cls if option]
        return options[number % len(options)]
    return {
        "string": f"{name}-é-{number}",
        "bytes": b"\xff\xfe" + str(number).encode(),
        "bool": True,
        "uint32": 2**32 - number,
        "int32": -number,
        "int64": -(2**40) - number,
    }[kind]


def their_struct(numbers: Iterator[int]) -> Any:
    """Fill a Struct with every kind of Value."""
    value, number = their_protobuf.Value, next(numbers)
    leaf = value(number_value=number + 0.5)
    fields = {
        "null": value(null_value=their_protobuf.NullValue(0)),
        "number": leaf,
        "string": value(string_value=f"text-é-{number}"),
        "bool": value(bool_value=True),
        "struct": value(
            struct_value=their_protobuf.Struct(fields={f"in-{number}": leaf, "no": value(bool_value=False)})
        ),
        "list": value(list_value=their_protobuf.ListValue(values=[leaf, value(string_value=f"item-{number}")])),
    }
    return their_protobuf.Struct(fields=fields)


def their_single(name: str, meta: Any, cls: Any, turn: int, numbers: Iterator[int]) -> Any:
    """Make one value of a field."""
    number = next(numbers)
    if meta.unwrap is not None:
        wrapped = meta.unwrap().__name__
        return {
            "BoolValue": (number + turn) % 2 == 0,
            "Timestamp": datetime.fromtimestamp(1_700_000_000 + number, UTC).replace(microsecond=123_000 + number),
        }[wrapped]
    if meta.proto_type == "message":
        return their_struct(numbers) if cls is their_protobuf.Struct else fill_theirs(cls, turn, numbers)
    return scalar(name, meta.proto_type, cls, number)


def fill_theirs(cls: Any, turn: int, numbers: Iterator[int]) -> Any:
    """Fill every field of a message, and of each oneof the member whose turn it is."""
    metas, classes = cls._betterproto.meta_by_field_name, cls._betterproto.cls_by_field
    groups: dict[str, list[str]] = {}
    for name, meta in metas.items():
        groups.setdefault(meta.group or f"={name}", []).append(name)
    values: dict[str, Any] = {}
    for name in (members[turn % len(members)] for members in groups.values()):
        meta = metas[name]
        if meta.map_meta:
            key, value = meta.map_meta
            values[name] = {
                scalar(name, key.proto_type, None, next(numbers)): their_single(
                    name, value, classes.get(f"{name}.value"), turn, numbers
                )
                for _ in range(2)
            }
        elif meta.repeated:
            values[name] = [their_single(name, meta, classes[name], turn, numbers) for _ in range(2)]
        else:
            values[name] = their_single(name, meta, classes[name], turn, numbers)
    return cls(**values)


@cache
def samples() -> tuple[tuple[str, Any], ...]:
    """Return filled messages of the independent library that together set every field."""
    numbers = count(1)
    return tuple((name, fill_theirs(cls, turn, numbers)) for name, cls in ROOTS.items() for turn in range(TURNS))


# --- What a message of either library says ---


def their_value(meta: Any, value: Any) -> Any:
    """Say one value of the independent library."""
    if meta.unwrap is not None:
        value = meta.unwrap().from_wrapped(value)
    if meta.proto_type == "message":
        return their_name(type(value)), their_tree(value)
    return meta.proto_type, int(value) if meta.proto_type == "enum" else value


def their_tree(message: Any) -> Tree:
    """Say every set field of a message of the independent library, which has to know them all."""
    assert message._unknown_fields == b"", f"{type(message).__name__} has unknown fields"
    tree: Tree = {}
    for name, meta in type(message)._betterproto.meta_by_field_name.items():
        value = getattr(message, name)
        if meta.map_meta:
            key, item = meta.map_meta
            said: Any = {their_value(key, k): their_value(item, v) for k, v in value.items()}
        elif meta.repeated:
            said = [their_value(meta, item) for item in value]
        elif value is None or (not meta.optional and not value):
            continue
        else:
            said = their_value(meta, value)
        if said:
            tree[name] = (meta.group, said)
    return tree


def their_name(cls: Any) -> str:
    """Name a message type of the independent library in full."""
    return str(their_pool.type_to_url[cls]).partition("/")[2]


KINDS = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def our_value(field: FieldDescriptor, value: Any) -> Any:
    """Say one value of ours."""
    if field.message_type is not None:
        return field.message_type.full_name, our_tree(value)
    return KINDS[field.type], value


def map_parts(field: Any) -> tuple[FieldDescriptor, FieldDescriptor] | None:
    """Return the key and the value of a map field, None for any other."""
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


def our_tree(message: Message) -> Tree:
    """Say every set field of a message of ours."""
    tree: Tree = {}
    for field, value in message.ListFields():
        parts = map_parts(field)
        if parts:
            said: Any = {our_value(parts[0], k): our_value(parts[1], value[k]) for k in value}
        elif field.is_repeated:
            said = [our_value(field, item) for item in value]
        else:
            said = our_value(field, value)
        tree[field.name] = (field.containing_oneof.name if field.containing_oneof else None, said)
    return tree


def fill_ours(message: Message, tree: Tree) -> None:
    """Set what a tree says on an empty message of ours, field by field and without parsing."""
    for name, (_, said) in tree.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        parts = map_parts(field)
        target = getattr(message, name)
        if parts:
            for (_, key), (_, value) in said.items():
                if parts[1].message_type is not None:
                    fill_ours(target[key], value)
                else:
                    target[key] = value
        elif field.is_repeated:
            for _, value in said:
                if field.message_type is not None:
                    fill_ours(target.add(), value)
                else:
                    target.append(value)
        elif field.message_type is not None:
            target.SetInParent()
            fill_ours(target, said[1])
        else:
            setattr(message, name, said[1])


def nested(message: Message) -> Iterator[Message]:
    """Walk over a message of ours and all messages in it."""
    yield message
    for field, value in message.ListFields():
        parts = map_parts(field)
        if parts:
            items = [value[key] for key in value] if parts[1].message_type is not None else []
        elif field.message_type is None:
            items = []
        else:
            items = value if field.is_repeated else [value]
        for item in items:
            yield from nested(item)


def unknown_fields(message: Message) -> list[Any]:
    """Return the unknown fields of one level: a sequence, though its type stub does not say so."""
    fields: Any = UnknownFieldSet(message)
    return list(fields)


def unknown(message: Message) -> list[str]:
    """Name the unknown fields at every level of a message of ours."""
    return [f"{part.DESCRIPTOR.full_name}#{f.field_number}" for part in nested(message) for f in unknown_fields(part)]


Classes = dict[str, Callable[[], Message]]


def faults(classes: Classes) -> list[str]:
    """List how the given message classes differ from the independent library, on every sample."""
    found = []
    for name, sample in samples():
        want = their_tree(sample)
        got = classes[name]()
        try:
            got.ParseFromString(bytes(sample))
        except DecodeError as error:
            found.append(f"{name}: {error}")
            continue
        if our_tree(got) != want:
            found.append(f"{name}: another value")
        found += [f"{name}: unknown {field}" for field in unknown(got)]
    return found


OURS: Classes = {"CheckRequest": external_auth_pb2.CheckRequest, "CheckResponse": external_auth_pb2.CheckResponse}


def all_messages(parents: Any = None) -> Iterator[Descriptor]:
    """Walk over every message type of the generated files, the entries of maps left out."""
    tops = parents or [message for file in FILES for message in file.message_types_by_name.values()]
    for message in tops:
        if not message.GetOptions().map_entry:
            yield message
            if message.nested_types:
                yield from all_messages(message.nested_types)


# --- The wire ---


@pytest.mark.parametrize("index", range(len(ROOTS) * TURNS))
def test_reads_what_the_independent_library_writes(index: int) -> None:
    """A message with every field set, written by another library, is read to the same names, types and values."""
    name, sample = samples()[index]
    got = OURS[name]()
    got.ParseFromString(bytes(sample))
    assert unknown(got) == []
    assert our_tree(got) == their_tree(sample)


@pytest.mark.parametrize("index", range(len(ROOTS) * TURNS))
def test_the_independent_library_reads_what_we_write(index: int) -> None:
    """A message of ours with every field set, made without parsing, is read by another library to the same."""
    name, sample = samples()[index]
    want = their_tree(sample)
    message = OURS[name]()
    fill_ours(message, want)
    assert their_tree(ROOTS[name].parse(message.SerializeToString())) == want


def test_the_samples_set_every_field() -> None:
    """No field of any generated message goes unproved: the samples set each one."""
    seen = set()
    for name, sample in samples():
        message = OURS[name]()
        fill_ours(message, their_tree(sample))
        seen |= {(part.DESCRIPTOR.full_name, f.name) for part in nested(message) for f, _ in part.ListFields()}
    every = {(message.full_name, field.name) for message in all_messages() for field in message.fields}
    assert len(every) > 60
    assert every - seen == set()


def test_the_samples_have_distinct_values() -> None:
    """No two fields of a sample share a text, number or byte string, so swapped fields cannot pass."""
    for _, sample in samples():
        values = [leaf for leaf in leaves(their_tree(sample)) if leaf[0] in {"string", "bytes", "uint32", "int64"}]
        assert len(values) == len(set(values))


def leaves(said: Any) -> Iterator[tuple[str, Any]]:
    """Walk over the scalars of a tree outside Structs."""
    if isinstance(said, list):
        for item in said:
            yield from leaves(item)
    elif isinstance(said, dict):
        for key, item in said.items():
            if isinstance(key, tuple):
                yield from leaves(key)
            yield from leaves(item if isinstance(key, tuple) else item[1])
    elif isinstance(said[1], dict):
        if said[0] != "google.protobuf.Struct":
            yield from leaves(said[1])
    else:
        yield said


# `error_response = 5` of CheckResponse, `status = 1` and `body = 3` of DeniedHttpResponse, `code = 1` of HttpStatus:
# envoy/service/auth/v3/external_auth.proto and envoy/type/v3/http_status.proto of Envoy's API.
@pytest.mark.parametrize(
    ("field", "tag"), [("denied_response", 2 << 3 | 2), ("ok_response", 3 << 3 | 2), ("error_response", 5 << 3 | 2)]
)
def test_an_answer_has_the_bytes_the_api_gives(field: str, tag: int) -> None:
    """The three answers bear the field numbers 2, 3 and 5, written here by hand."""
    message = external_auth_pb2.CheckResponse()
    if field == "ok_response":
        message.ok_response.headers_to_remove.append("h")
        body = b"\x2a\x01h"  # headers_to_remove = 5
    else:
        answer = getattr(message, field)
        answer.status.code = 503
        answer.body = "no"
        body = b"\x0a\x03\x08\xf7\x03\x1a\x02no"  # status = 1 { code = 1 }, body = 3
    assert message.SerializeToString() == bytes([tag, len(body)]) + body


# --- A wrong field cannot pass ---

WRONG_TYPES = {
    FieldDescriptorProto.TYPE_STRING: FieldDescriptorProto.TYPE_BYTES,
    FieldDescriptorProto.TYPE_BYTES: FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BOOL: FieldDescriptorProto.TYPE_UINT32,
    FieldDescriptorProto.TYPE_UINT32: FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_INT64: FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_ENUM: FieldDescriptorProto.TYPE_INT32,
    FieldDescriptorProto.TYPE_MESSAGE: FieldDescriptorProto.TYPE_BYTES,
}


def wrong_number(message: DescriptorProto, index: int) -> bool:
    """Move a field to a free number."""
    message.field[index].number = 1000
    return not message.options.map_entry


def swapped(message: DescriptorProto, index: int) -> bool:
    """Exchange the numbers of two neighbours."""
    if message.options.map_entry or index + 1 == len(message.field):
        return False
    one, other = message.field[index], message.field[index + 1]
    one.number, other.number = other.number, one.number
    return True


def wrong_type(message: DescriptorProto, index: int) -> bool:
    """Declare another type."""
    field = message.field[index]
    if message.options.map_entry and field.name == "key":
        field.type = FieldDescriptorProto.TYPE_INT64
        return True
    if any(field.type_name.endswith(f".{inner.name}") for inner in message.nested_type if inner.options.map_entry):
        return False  # its entry is changed instead
    field.type = WRONG_TYPES[field.type]
    field.ClearField("type_name")
    return True


def wrong_label(message: DescriptorProto, index: int) -> bool:
    """Make a single field repeated and a repeated one single."""
    field = message.field[index]
    if message.options.map_entry or field.HasField("oneof_index"):
        return False
    if any(field.type_name.endswith(f".{inner.name}") for inner in message.nested_type if inner.options.map_entry):
        return False
    single = field.label != FieldDescriptorProto.LABEL_REPEATED
    field.label = FieldDescriptorProto.LABEL_REPEATED if single else FieldDescriptorProto.LABEL_OPTIONAL
    return True


def wrong_oneof(message: DescriptorProto, index: int) -> bool:
    """Put a field into a oneof of another name."""
    field = message.field[index]
    if not field.HasField("oneof_index"):
        return False
    message.oneof_decl[field.oneof_index].name = "other"
    return True


def message_protos(messages: Any) -> Iterator[DescriptorProto]:
    """Walk over message definitions and those within."""
    for message in messages:
        yield message
        yield from message_protos(message.nested_type)


def with_dependencies(file: FileDescriptor) -> Iterator[FileDescriptor]:
    """Walk over a file and what it imports, the imported first."""
    for dependency in file.dependencies:
        yield from with_dependencies(dependency)
    yield file


@cache
def all_files() -> dict[str, FileDescriptorProto]:
    """Return the definitions of our files and of all they import."""
    files = {}
    for file in with_dependencies(external_auth_pb2.DESCRIPTOR):
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        files[file.name] = proto
    return files


def load(files: dict[str, FileDescriptorProto]) -> Classes:
    """Build the message classes of definitions apart from the imported ones."""
    pool = descriptor_pool.DescriptorPool()
    for proto in files.values():
        pool.AddSerializedFile(proto.SerializeToString())
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"envoy.service.auth.v3.{name}")) for name in OURS}


def test_a_true_copy_has_no_fault() -> None:
    """The comparison itself passes on an unchanged copy of the definitions."""
    assert faults(load(all_files())) == []


@pytest.mark.parametrize("change", [wrong_number, swapped, wrong_type, wrong_label, wrong_oneof])
def test_a_wrong_field_cannot_pass(change: Callable[[DescriptorProto, int], bool]) -> None:
    """A field with another number, type, label or oneof, whichever field it is, is found by the comparison."""
    changed, missed = 0, []
    for file in FILES:
        for place, original in enumerate(message_protos(all_files()[file.name].message_type)):
            for index, field in enumerate(original.field):
                copy = FileDescriptorProto()
                copy.CopyFrom(all_files()[file.name])
                message = list(message_protos(copy.message_type))[place]
                if not change(message, index):
                    continue
                changed += 1
                if not faults(load({**all_files(), file.name: copy})):
                    missed.append(f"{file.name} {original.name}.{field.name}")
    assert changed
    assert missed == []


# --- Names ---


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (http_status_pb2.StatusCode.DESCRIPTOR, their_type.StatusCode),
        (base_pb2.HeaderValueOption.HeaderAppendAction.DESCRIPTOR, their_core.HeaderValueOptionHeaderAppendAction),
        (address_pb2.SocketAddress.Protocol.DESCRIPTOR, their_core.SocketAddressProtocol),
    ],
    ids=lambda value: value.name if isinstance(value, EnumDescriptor) else "",
)
def test_enums_are_the_same(ours: EnumDescriptor, other: Any) -> None:
    """An enum has the names and numbers that the independent library gives it, no more and no fewer."""
    assert {value.name: value.number for value in ours.values} == {value.name: int(value) for value in other}


def test_every_enum_is_compared() -> None:
    """There is no generated enum beside the three compared ones."""
    tops = [name for file in FILES for name in file.enum_types_by_name]
    inner = [enum.name for message in all_messages() for enum in message.enum_types]
    assert sorted(tops + inner) == ["HeaderAppendAction", "Protocol", "StatusCode"]


def test_the_service_has_its_true_name() -> None:
    """The service, its method and both messages are named and shaped as in Envoy's API."""
    service = descriptor_pool.Default().FindServiceByName("envoy.service.auth.v3.Authorization")
    (method,) = service.methods
    (path,) = theirs.AuthorizationBase().__mapping__()
    assert f"/{service.full_name}/{method.name}" == path
    assert method.input_type.full_name == their_name(theirs.CheckRequest)
    assert method.output_type.full_name == their_name(theirs.CheckResponse)
    assert (method.client_streaming, method.server_streaming) == (False, False)
    assert external_auth_pb2_grpc.AuthorizationServicer.Check is not None


def test_files_have_their_true_names() -> None:
    """Each descriptor bears Envoy's file path and package, and the default pool, hence reflection, finds it."""
    sources = set()
    for module in (their_core, theirs, their_type):
        head = Path(str(module.__file__)).read_text(encoding="utf-8").partition("# plugin:")[0]
        sources |= set(re.findall(r"[\w/]+\.proto", head))
    for file in FILES:
        assert file.name in sources
        assert file.package == file.name.rpartition("/")[0].replace("/", ".")
        assert descriptor_pool.Default().FindFileByName(file.name) is file


def test_the_package_envoy_is_never_imported() -> None:
    """Importing the generated modules leaves the top-level name `envoy`, another distribution's, alone."""
    code = (
        "import pickle, sys\n"
        "sys.modules['envoy'] = None\n"
        "from authz.pb.envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc\n"
        "pickle.loads(pickle.dumps(external_auth_pb2.CheckRequest()))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- The generator ---


def check(source: Path, target: Path) -> tuple[int, list[str]]:
    """Run the generator's check."""
    command = [sys.executable, "tools/proto.py", "--check", f"--source={source}", f"--target={target}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_the_generated_code_is_fresh() -> None:
    """The modules under authz/pb are what the generator makes of proto/ today."""
    assert check(ROOT / "proto", ROOT / "authz" / "pb") == (0, [])


def test_the_check_names_stale_missing_and_extra_files(tmp_path: Path) -> None:
    """A changed field number, a deleted and a foreign file are each named and fail the check."""
    source, target = tmp_path / "proto", tmp_path / "pb"
    shutil.copytree(ROOT / "proto", source)
    shutil.copytree(ROOT / "authz" / "pb", target)
    proto = source / "envoy" / "type" / "v3" / "http_status.proto"
    text = proto.read_text(encoding="utf-8")
    assert "StatusCode code = 1;" in text
    proto.write_text(text.replace("StatusCode code = 1;", "StatusCode code = 2;"), encoding="utf-8")
    (target / "envoy" / "config" / "core" / "v3" / "base_pb2.py").unlink()
    (target / "envoy" / "foreign.py").touch()
    assert check(source, target) == (
        1,
        [
            "missing: envoy/config/core/v3/base_pb2.py",
            "extra: envoy/foreign.py",
            "stale: envoy/type/v3/http_status_pb2.py",
        ],
    )


@pytest.mark.parametrize(
    ("package", "module", "pattern"),
    [
        ("protobuf", "external_auth_pb2", r"# Protobuf Python Version: ([\d.]+)"),
        ("grpcio", "external_auth_pb2_grpc", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
    ],
)
def test_the_lower_bounds_run_the_generated_code(package: str, module: str, pattern: str) -> None:
    """The project admits no version of a runtime that the generated code refuses at import."""
    file = import_module(f"authz.pb.envoy.service.auth.v3.{module}").__file__
    needed = re.findall(pattern, Path(str(file)).read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = (match[1] for line in project["dependencies"] if (match := re.match(rf"{package}>=([\d.]+)", line)))
    assert [int(part) for part in bound.split(".")] >= [int(part) for part in needed[0].split(".")]
