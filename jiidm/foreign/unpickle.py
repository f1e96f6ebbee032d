"""Reads pickles as data: nothing that a file names is imported, looked up or called.

This is not `pickle.Unpickler` with a `find_class` of its own, because that one trusts more than names: it reserves the
memory that a file claims, hashes whatever stands for a key (a tuple of itself, nested a hundred times, never ends),
asks the extension registry first, and sets attributes on what `find_class` gave it. Here the opcodes that Python 3
writes (protocols 2 to 5) make up lists, dicts and plain values; whatever else a pickle calls is made by a builder from
a fixed table, or refused by name. Bytes and long texts stay in the file, as `Span`s.
"""
import abc
import pickletools
import struct

from jiidm.checkpoint import Span
from jiidm.system.errors import InputError

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_MOST_OPCODES = 1_000_000  # a UNet of full size with its average and its optimiser has about 200 thousand
_MOST_TEXT = 8 << 20  # bytes, all texts together; that file has less than one million
_LONG_TEXT = 1 << 16  # longer ones stay in the file: what Python 2's protocol makes of the bytes of an array
_LONGEST_NUMBER, _LONGEST_NAME = 16, 256  # bytes


def shown(text):
    """A text from a file as part of a message of one line."""
    text = str(text)
    text = text if len(text) <= 120 else text[:117] + "..."
    return text if text.isascii() and text.isprintable() else ascii(text)


class Name:
    """A class or function that a pickle names. An inert one also stands for every object that would be made with it."""

    __slots__ = ("name", "inert")

    def __init__(self, name, inert):
        self.name, self.inert = name, inert


def _ignored(target):
    return isinstance(target, Name) and target.inert


class TextSpan(Span):
    """A long text that stays in the file, in UTF-8."""


class Buildable(abc.ABC):
    """What a builder may return to take part in BUILD: `build(state)` receives the state."""

    @abc.abstractmethod
    def build(self, state):
        """Takes in the state, a value that the pickle has made."""


class Unpickler:
    """Reads the pickle that begins at the position of `file` and ends before byte `end`.

    `builders`: names ("module.name") to functions of the arguments that a pickle gives; `inert`: a function that says
    whether a name may stand in the pickle, to be ignored with all that is made with it; `persistent`: a function of a
    persistent id, or None where there are none. Builders raise ValueError for arguments that they cannot take.
    """

    def __init__(self, path, file, end, builders, inert, persistent=None):
        self.path, self.file, self.end = path, file, end
        self.builders, self.inert, self.persistent = builders, inert, persistent
        self.position = file.tell()
        self.stack, self.marks, self.memo, self.names, self.text = [], [], {}, {}, 0

    def load(self):
        """The object; `file` then stands behind the pickle. Raises InputError for all that is not plain data."""
        try:
            for _ in range(_MOST_OPCODES):
                code = self._read(1)[0]
                name = _NAMES.get(code)
                if name == "STOP":
                    return self.stack.pop()
                operation = getattr(self, f"_op_{name}".lower(), None)
                if operation is None:
                    raise self._fault(f"opcode {name or hex(code)} in its pickle, which weights do not need")
                operation()
        except InputError:
            raise
        except ValueError as error:
            raise self._fault(error) from error
        except (IndexError, KeyError) as error:  # of the stack and the memo
            raise self._fault("its pickle uses what it has not made") from error
        raise self._fault(f"more than {_MOST_OPCODES} steps in the pickle")

    def _fault(self, text):
        return InputError(f"{self.path}: {text}; it is not read any further and nothing of it was run")

    def _read(self, count):
        self._advance(count)
        return self.file.read(count)

    def _advance(self, count):
        self.position += count
        if self.position > self.end:
            raise self._fault("ends in the middle of its pickle, copy it again")

    def _number(self, kind):
        return struct.unpack(kind, self._read(struct.calcsize(kind)))[0]

    def _span(self, length, cls=Span):
        """The next `length` bytes, left where they are."""
        start = self.position
        self._advance(length)
        self.file.seek(self.position)
        return cls(self.path, start, length)

    def _marked(self):
        """What was pushed since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # ---- plain values

    def _op_proto(self):
        protocol = self._number("<B")
        if not 2 <= protocol <= 5:
            raise self._fault(f"pickle protocol {protocol}, expected 2 to 5")

    def _op_frame(self):
        self._read(8)

    def _op_none(self):
        self.stack.append(None)

    def _op_newtrue(self):
        self.stack.append(True)

    def _op_newfalse(self):
        self.stack.append(False)

    def _op_binint(self):
        self.stack.append(self._number("<i"))

    def _op_binint1(self):
        self.stack.append(self._number("<B"))

    def _op_binint2(self):
        self.stack.append(self._number("<H"))

    def _op_long1(self):
        length = self._number("<B")
        if length > _LONGEST_NUMBER:
            raise self._fault(f"a whole number of {length} bytes in the pickle")
        self.stack.append(int.from_bytes(self._read(length), "little", signed=True))

    def _op_binfloat(self):
        self.stack.append(self._number(">d"))

    def _text(self, length):
        if length > _LONG_TEXT:
            self.stack.append(self._span(length, TextSpan))
            return
        self.text += length
        if self.text > _MOST_TEXT:
            raise self._fault(f"more than {_MOST_TEXT} bytes of text in the pickle")
        self.stack.append(self._read(length).decode())

    def _op_short_binunicode(self):
        self._text(self._number("<B"))

    def _op_binunicode(self):
        self._text(self._number("<I"))

    def _op_binunicode8(self):
        self._text(self._number("<Q"))

    def _op_short_binbytes(self):
        self.stack.append(self._span(self._number("<B")))

    def _op_binbytes(self):
        self.stack.append(self._span(self._number("<I")))

    def _op_binbytes8(self):
        self.stack.append(self._span(self._number("<Q")))

    _op_bytearray8 = _op_binbytes8

    # ---- containers

    def _op_mark(self):
        self.marks.append(len(self.stack))

    def _op_pop(self):
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _op_pop_mark(self):
        self._marked()

    def _op_empty_tuple(self):
        self.stack.append(())

    def _op_tuple(self):
        self.stack.append(tuple(self._marked()))

    def _last(self, count):
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [items]

    def _op_tuple1(self):
        self._last(1)

    def _op_tuple2(self):
        self._last(2)

    def _op_tuple3(self):
        self._last(3)

    def _op_empty_list(self):
        self.stack.append([])

    _op_empty_set = _op_empty_list  # kept as lists: nothing is hashed

    def _extend(self, items):
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not _ignored(target):
            raise ValueError("a pickle that appends to what is no list")

    def _op_append(self):
        item = self.stack.pop()
        self._extend([item])

    def _op_appends(self):
        self._extend(self._marked())

    _op_additems = _op_appends

    def _op_frozenset(self):
        self.stack.append(self._marked())

    def _op_empty_dict(self):
        self.stack.append({})

    def _set(self, items):
        target = self.stack[-1]
        if _ignored(target):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("a pickle that sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # nothing that could be made to collide, or would hash all that it holds
            if not (key is None or isinstance(key, str | Name) or (isinstance(key, int) and abs(key) < 2**60)):
                raise ValueError(f"a {type(key).__name__} as the key of a dict, expected a text or a whole number")
            target[key] = value

    def _op_setitem(self):
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set(items)

    def _op_setitems(self):
        self._set(self._marked())

    # ---- the memo

    def _op_binput(self):
        self.memo[self._number("<B")] = self.stack[-1]

    def _op_long_binput(self):
        self.memo[self._number("<I")] = self.stack[-1]

    def _op_memoize(self):
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_binget(self):
        self.stack.append(self.memo[self._number("<B")])

    def _op_long_binget(self):
        self.stack.append(self.memo[self._number("<I")])

    # ---- names, and what a pickle wants made with them

    def _named(self, module, name):
        full = f"{module}.{name}"
        if full not in self.names:
            inert = full not in self.builders
            if inert and not self.inert(full):
                raise self._fault(f"its pickle names {shown(full)}, which weights do not need")
            self.names[full] = Name(full, inert)
        self.stack.append(self.names[full])

    def _op_global(self):
        words = []
        for _ in range(2):
            line = self.file.readline(_LONGEST_NAME)
            self._advance(len(line))
            if not line.endswith(b"\n"):
                raise ValueError("a name without an end in the pickle")
            words.append(line[:-1].decode())
        self._named(*words)

    def _op_stack_global(self):
        words = self.stack[-2:]
        del self.stack[-2:]
        if len(words) < 2 or not all(isinstance(word, str) and len(word) <= _LONGEST_NAME for word in words):
            raise ValueError("a name that is no text in the pickle")
        self._named(*words)

    def _made(self, maker, arguments):
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise ValueError("a pickle that calls what is no name")
        self.stack.append(maker if maker.inert else self.builders[maker.name](arguments))

    def _op_reduce(self):
        arguments, maker = self.stack.pop(), self.stack.pop()
        self._made(maker, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self):
        if self.stack.pop() != {}:
            raise ValueError("a pickle that makes something from named arguments")
        self._op_reduce()

    def _op_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        elif not isinstance(target, dict) and not _ignored(target):  # the attributes of an ordered dict are no weights
            raise ValueError(f"a pickle that sets attributes of a {type(target).__name__}")

    def _op_binpersid(self):
        if self.persistent is None:
            raise ValueError("a pickle that refers to storages outside of it")
        self.stack.append(self.persistent(self.stack.pop()))
