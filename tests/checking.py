"""How the shapes and types of the tests are checked: a nested function's check is written once.

`rml` is imported with its functions checked, also those that a function makes each time it is
called. The check of such a function is a program of its own, generated in a millisecond or two,
and depends on the signature alone.
"""

from functools import partial

from jaxtyping import _decorator


def share_checks() -> None:
    """Lets functions of one module, name and signature share their check from now on."""
    write, check = _decorator._make_fn_with_signature, _decorator._apply_typechecker
    written, checked = {}, {}

    def write_once(name, qualname, module, signature, output):
        key = module, qualname, output, str(signature)
        if key not in written:
            written[key] = write(name, qualname, module, signature, output)
        return written[key]

    def check_once(typechecker, function):
        if function not in checked:
            checked[function] = when_called(partial(check, typechecker, function))
        return checked[function]

    _decorator._make_fn_with_signature = write_once
    _decorator._apply_typechecker = check_once


def when_called(make):
    """What `make` makes, made once it is called: most functions are not, in one process."""
    made = None

    def called(*args, **named):
        nonlocal made
        if made is None:
            made = make()
        return made(*args, **named)

    return called
