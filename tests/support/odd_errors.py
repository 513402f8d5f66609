"""Exceptions whose `repr` does not say what they are, or that are pickled in a way of their own."""

from __future__ import annotations

import threading


class WithRepr(Exception):
    """Shows as its message, as pydantic's, requests' and many others do."""

    def __repr__(self):
        return str(self)


class Looks(WithRepr):
    """Its `repr` looks like that of another type."""


class Outer:
    class Inner(WithRepr):
        pass


class TwoArguments(WithRepr):
    """Cannot be made from its message, as Python's own pickling would."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Reduced(WithRepr):
    def __reduce__(self):
        return Reduced, self.args


class ByClassMethod(WithRepr):
    """Pickled as a call of a bound method, as pydantic's."""

    @classmethod
    def make(cls, text):
        return cls(text)

    def __reduce__(self):
        return ByClassMethod.make, self.args


def _remake(class_, *arguments):
    return class_(*arguments)


class ByFunction(WithRepr):
    """Pickled as a call of a function with the class, as botocore's."""

    def __reduce__(self):
        return _remake, (ByFunction, *self.args)


def _make(text):
    return ByFactory(text)


class ByFactory(WithRepr):
    """Pickled as a call of a function that knows the class, which the pickle does not name."""

    def __reduce__(self):
        return _make, self.args


class error(WithRepr):
    pass


class Unpicklable(WithRepr):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class UnpicklablePlain(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class LongAndStrict(Exception):
    """Dask shortens long exceptions by making them anew, with two arguments."""

    def __init__(self, text):
        super().__init__(text)


def local(text):
    class Local(WithRepr):
        pass

    return Local(text)


def dynamic(text):
    return type("Dynamic", (WithRepr,), {})(text)


def chained(text):
    try:
        raise ValueError("before")
    except ValueError as before:
        later = WithRepr(text)
        later.__cause__ = before
        return later
