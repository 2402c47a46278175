from collections.abc import Callable

from torch import Tensor, dtype

def softmax(self: Tensor, dim: int, /) -> Tensor: ...
def log_softmax(self: Tensor, dim: int, /) -> Tensor: ...

# The options behind the weight: those of softkern.options, one by one; and inplace_backward.
def cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, /, *options: float) -> Tensor: ...
def takes_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, /, *options: float) -> bool: ...

# The same for row_losses; row_losses has inplace_backward at the end.
def row_losses(
    input: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
    /,
    *options: float,
) -> tuple[Tensor, ...]: ...
def takes_row_losses(
    input: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
    /,
    *options: float,
) -> bool: ...
def row_losses_in_aten(
    input: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
    /,
    *options: float,
) -> tuple[Tensor, ...]: ...

# The step of a backend, for tests: the tensors and options of row_losses, then `first`, the numbers of whole
# rows, memory for those of these rows, four upstream gradients, memory for the loss and for the gradient.
def row_losses_step(*arguments: Tensor | float | None) -> None: ...

# The same for linear_cross_entropy.
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
    /,
    *options: float,
) -> tuple[Tensor, ...]: ...
def takes_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
    /,
    *options: float,
) -> bool: ...
def linear_cross_entropy_in_aten(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
    /,
    *options: float,
) -> tuple[Tensor, ...]: ...
def op_names() -> list[str]: ...
def isas() -> list[tuple[str, bool, str]]: ...
def active_isa() -> str: ...
def last_isa() -> str: ...
def last_path() -> str: ...
def set_last(isa: str, path: str, /) -> None: ...
def why_no_cuda(device: int, /) -> str: ...
def set_triton_probe(probe: Callable[[str], bool], /) -> None: ...
def choose_for_process(name: str, required: bool, /) -> None: ...
def choose_for_thread(name: str, /) -> None: ...
def required() -> str: ...
def huge_pages_wanted() -> bool: ...
def thread_choice() -> str: ...
def set_patience(seconds: float, /) -> None: ...
def put_behind(
    function: Callable[..., Tensor],
    op: str,
    others: Callable[[Tensor, int, dtype | None], Tensor | None],
    /,
) -> None: ...
def take_away(function: Callable[..., Tensor], /) -> None: ...
def makes_a_graph() -> bool: ...
def build() -> dict[str, str | int]: ...

# The name of the way that Python reaches the kernels, and why no better one (softkern/_binding).
def binding() -> tuple[str, str]: ...
