"""Reads pickles as data: nothing that a file names is imported, looked up or called.

`pickle.Unpickler` with a `find_class` of its own would trust a file too far. It reserves the memory that the file
claims. It hashes any key, and a tuple of itself, nested a hundred times, never ends. It asks the extension registry
first, and sets attributes on what `find_class` returns. Here the opcodes that Python 3 writes (protocols 2 to 5) build
lists, dicts and plain values. Anything else that a pickle calls is built from a fixed table, or refused by name. Bytes
and long texts stay in the file, as `Span`s.
"""
import abc
import pickletools
import struct

from jiidm.checkpoint import Span
from jiidm.system.errors import InputError

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_MAX_OPCODES = 1_000_000  # a UNet of full size with its average and its optimiser has about 200 thousand
_MAX_TEXT = 8 << 20  # bytes, all texts together; that file has less than one million
_LONG_TEXT = 1 << 16  # longer ones stay in the file: protocol 2 stores the bytes of an array as a text
_MAX_NUMBER, _MAX_NAME = 16, 256  # bytes


def quote(text: object) -> str:
    """Returns a text from a file, cut and escaped for a message of one line."""
    text = str(text)
    text = text if len(text) <= 120 else text[:117] + "..."
    return text if text.isascii() and text.isprintable() else ascii(text)


class Name:
    """A class or function that a pickle names. An inert one also stands for every object built with it."""

    __slots__ = ("name", "inert")

    def __init__(self, name, inert):
        self.name, self.inert = name, inert


def _is_ignored(target):
    """Whether it stands for an object that is not built."""
    return isinstance(target, Name) and target.inert


class TextSpan(Span):
    """A long text that stays in the file, in UTF-8."""


class Buildable(abc.ABC):
    """An object whose state the opcode BUILD sets."""

    @abc.abstractmethod
    def build(self, state):
        """Takes the state, a value from the pickle."""


class Unpickler:
    """Reads one pickle.

    Args:
        path: the file, for the messages.
        file: open, at the first byte of the pickle.
        end: the pickle ends before this byte.
        builders: names ("module.name") to functions of the arguments in the pickle, which raise ValueError for
            arguments that they do not know.
        inert: a function that says whether another name may appear; objects built with it are ignored.
        persistent: a function from a persistent id to an object. None: the pickle may have none.
    """

    def __init__(self, path, file, end, builders, inert, persistent=None):
        self.path, self.file, self.end = path, file, end
        self.builders, self.inert, self.persistent = builders, inert, persistent
        self.position = file.tell()
        self.stack, self.marks, self.memo, self.names, self.text = [], [], {}, {}, 0

    def load(self):
        """Returns the object and leaves `file` behind the pickle; raises InputError for anything but plain data."""
        try:
            for _ in range(_MAX_OPCODES):
                code = self._read(1)[0]
                name = _NAMES.get(code)
                if name == "STOP":
                    return self.stack.pop()
                if name in _VALUES:
                    self.stack.append(_VALUES[name])
                elif name in _NUMBERS:
                    self.stack.append(self._number(_NUMBERS[name]))
                elif name in _SIZED:
                    operation, kind = _SIZED[name]
                    operation(self, self._number(kind))
                elif hasattr(self, f"_op_{name}".lower()):
                    getattr(self, f"_op_{name}".lower())()
                else:
                    raise self._fault(f"opcode {name or hex(code)} in its pickle, which weights do not need")
        except InputError:
            raise
        except ValueError as error:
            raise self._fault(error) from error
        except (IndexError, KeyError) as error:  # of the stack and the memo
            raise self._fault("its pickle uses what it has not stored") from error
        raise self._fault(f"more than {_MAX_OPCODES} steps in the pickle")

    def _fault(self, text):
        """The error of this file."""
        return InputError(f"{self.path}: {text}; it is not read any further and nothing of it was run")

    def _read(self, count):
        """The next bytes."""
        self._advance(count)
        return self.file.read(count)

    def _advance(self, count):
        """Counts bytes that are read; raises where they go beyond the pickle."""
        self.position += count
        if self.position > self.end:
            raise self._fault("ends in the middle of its pickle, copy it again")

    def _number(self, kind):
        """The next number."""
        return struct.unpack(kind, self._read(struct.calcsize(kind)))[0]

    def _span(self, length, cls=Span):
        """The next `length` bytes, which stay in the file."""
        start = self.position
        self._advance(length)
        self.file.seek(self.position)
        return cls(self.path, start, length)

    def _pop_to_mark(self):
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

    def _op_long1(self):
        length = self._number("<B")
        if length > _MAX_NUMBER:
            raise self._fault(f"a whole number of {length} bytes in the pickle")
        self.stack.append(int.from_bytes(self._read(length), "little", signed=True))

    def _push_text(self, length):
        """Pushes the next text."""
        if length > _LONG_TEXT:
            self.stack.append(self._span(length, TextSpan))
            return
        self.text += length
        if self.text > _MAX_TEXT:
            raise self._fault(f"more than {_MAX_TEXT} bytes of text in the pickle")
        self.stack.append(self._read(length).decode())

    def _push_bytes(self, length):
        """Pushes the next bytes, which stay in the file."""
        self.stack.append(self._span(length))

    # ---- containers

    def _op_mark(self):
        self.marks.append(len(self.stack))

    def _op_pop(self):
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _op_pop_mark(self):
        self._pop_to_mark()

    def _op_empty_tuple(self):
        self.stack.append(())

    def _op_tuple(self):
        self.stack.append(tuple(self._pop_to_mark()))

    def _tuple_of(self, count):
        """Makes a tuple of the last values."""
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError
        self.stack[-count:] = [items]

    def _op_tuple1(self):
        self._tuple_of(1)

    def _op_tuple2(self):
        self._tuple_of(2)

    def _op_tuple3(self):
        self._tuple_of(3)

    def _op_empty_list(self):
        self.stack.append([])

    _op_empty_set = _op_empty_list  # kept as lists: nothing is hashed

    def _extend(self, items):
        """Appends to the list on the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not _is_ignored(target):
            raise ValueError("a pickle that appends to what is no list")

    def _op_append(self):
        item = self.stack.pop()
        self._extend([item])

    def _op_appends(self):
        self._extend(self._pop_to_mark())

    _op_additems = _op_appends

    def _op_frozenset(self):
        self.stack.append(self._pop_to_mark())

    def _op_empty_dict(self):
        self.stack.append({})

    def _set(self, items):
        """Sets items of the dict on the stack."""
        target = self.stack[-1]
        if _is_ignored(target):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("a pickle that sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # no keys that can collide on purpose, or whose hash visits all that they hold
            if not (key is None or isinstance(key, str | Name) or (isinstance(key, int) and abs(key) < 2**60)):
                raise ValueError(f"a {type(key).__name__} as the key of a dict, expected a text or a whole number")
            target[key] = value

    def _op_setitem(self):
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set(items)

    def _op_setitems(self):
        self._set(self._pop_to_mark())

    # ---- the memo

    def _remember(self, place):
        """Stores the last value."""
        self.memo[place] = self.stack[-1]

    def _recall(self, place):
        """Pushes a stored value."""
        self.stack.append(self.memo[place])

    def _op_memoize(self):
        self._remember(len(self.memo))

    # ---- names, and the objects that a pickle builds with them

    def _push_name(self, module, name):
        """Pushes a name; raises where it is neither in the table nor inert."""
        full = f"{module}.{name}"
        if full not in self.names:
            inert = full not in self.builders
            if inert and not self.inert(full):
                raise self._fault(f"its pickle names {quote(full)}, which weights do not need")
            self.names[full] = Name(full, inert)
        self.stack.append(self.names[full])

    def _op_global(self):
        words = []
        for _ in range(2):
            line = self.file.readline(_MAX_NAME)
            self._advance(len(line))
            if not line.endswith(b"\n"):
                raise ValueError("a name without an end in the pickle")
            words.append(line[:-1].decode())
        self._push_name(*words)

    def _op_stack_global(self):
        words = self.stack[-2:]
        del self.stack[-2:]
        if len(words) < 2 or not all(isinstance(word, str) and len(word) <= _MAX_NAME for word in words):
            raise ValueError("a name that is no text in the pickle")
        self._push_name(*words)

    def _call(self, maker, arguments):
        """Pushes what a builder returns for the arguments; an inert name stands for its result."""
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise ValueError("a pickle that calls what is no name")
        self.stack.append(maker if maker.inert else self.builders[maker.name](arguments))

    def _op_reduce(self):
        arguments, maker = self.stack.pop(), self.stack.pop()
        self._call(maker, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self):
        if self.stack.pop() != {}:
            raise ValueError("a pickle that makes something from named arguments")
        self._op_reduce()

    def _op_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        elif not isinstance(target, dict) and not _is_ignored(target):  # an ordered dict's are no weights
            raise ValueError(f"a pickle that sets attributes of a {type(target).__name__}")

    def _op_binpersid(self):
        if self.persistent is None:
            raise ValueError("a pickle that refers to storages outside of it")
        self.stack.append(self.persistent(self.stack.pop()))


# opcodes that push a constant, that push a number (with its format), and that begin with a length or a place
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}
_SIZED = {
    "SHORT_BINUNICODE": (Unpickler._push_text, "<B"), "BINUNICODE": (Unpickler._push_text, "<I"),
    "BINUNICODE8": (Unpickler._push_text, "<Q"),
    "SHORT_BINBYTES": (Unpickler._push_bytes, "<B"), "BINBYTES": (Unpickler._push_bytes, "<I"),
    "BINBYTES8": (Unpickler._push_bytes, "<Q"), "BYTEARRAY8": (Unpickler._push_bytes, "<Q"),
    "BINPUT": (Unpickler._remember, "<B"), "LONG_BINPUT": (Unpickler._remember, "<I"),
    "BINGET": (Unpickler._recall, "<B"), "LONG_BINGET": (Unpickler._recall, "<I"),
}
