"""The final answer of a solution to a math problem, as in PEFT's MetaMathQA benchmark (`method_comparison`)."""

from decimal import Decimal

# In this order; the first one that the text contains counts. The last is GSM8K's.
_BEFORE_ANSWER = (
    "The answer is: ",
    "The answer is ",
    "The final answer is: ",
    "The final answer is ",
    "#### ",
)


def final_answer(text: str) -> float | str | None:
    """Return the answer that a solution ends with, as a number if it is one; None if the solution names no answer.

    It is the rest of the line after the last occurrence of one of _BEFORE_ANSWER, without periods, dollar and percent
    signs.
    """
    text = text.strip().rstrip(".!?")
    before = next((words for words in _BEFORE_ANSWER if words in text), None)
    if before is None:
        return None
    answer = text.rpartition(before)[2].strip().split("\n", 1)[0].strip(" .!?$%")
    try:
        numerator, *denominator = (Decimal(part.strip()) for part in answer.split("/"))
        if len(denominator) > 1:
            return answer
        return float(numerator / denominator[0] if denominator else numerator)
    except (ArithmeticError, ValueError):
        return answer


def same_final_answer(solution: str, prediction: str) -> bool:
    """Return whether two solutions end with the same answer. Without an answer, a prediction is wrong."""
    given = final_answer(prediction)
    return given is not None and given == final_answer(solution)
