"""One CloudFormation stack: created, updated in place, rolled back, deleted."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, WaiterError

from server.deploy.errors import DeployError
from server.deploy.template import Template

# CloudFormation's words for a change set that would change nothing.
_UNCHANGED = ("didn't contain changes", "No updates are to be performed", "contains no changes")

# A stack whose creation failed can only be deleted.
_STILLBORN = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "REVIEW_IN_PROGRESS")

# The status of a stack when an operation begins.
_BEGINNING = ("CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS")

# For how long an operation may take. A machine alone has 15 minutes for its installation, before it is taken back.
_LONGEST_SECONDS = 3600


class Stack:
    """A stack, which may not exist yet.

    Attributes:
      name: the stack's name.
    """

    def __init__(self, cloudformation: Any, name: str, poll_seconds: float) -> None:
        self.name = name
        self._api = cloudformation
        self._poll_seconds = poll_seconds

    def describe(self) -> dict[str, Any] | None:
        """Returns CloudFormation's description of the stack; None if there is no stack.

        Raises:
          DeployError: CloudFormation refuses.
        """
        try:
            found = self._api.describe_stacks(StackName=self.name)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise _refusal(error) from None
        except BotoCoreError as error:
            raise _refusal(error) from None
        return dict(found) if found["StackStatus"] != "DELETE_COMPLETE" else None

    def outputs(self) -> dict[str, str]:
        """Returns the outputs of the stack by name."""
        description = self.describe() or {}
        return {output["OutputKey"]: output["OutputValue"] for output in description.get("Outputs", ())}

    def deploy(self, template: Template) -> bool:
        """Creates the stack, or updates it in place; returns False if it is up to date already.

        Raises:
          DeployError: CloudFormation refuses, or fails and has rolled back.
        """
        with refusals():
            description = self.describe()
            # Remove what an earlier failure has left.
            if description is not None and description["StackStatus"] in _STILLBORN:
                self.delete()
                description = None
            self._api.validate_template(TemplateBody=template.text)
            if description is None:
                self._api.create_stack(StackName=self.name, **template.to_arguments())
            # An update that changes nothing is an error of CloudFormation, so ask first.
            elif (change_set := self._create_change_set(template)) is None:
                return False
            else:
                self._api.execute_change_set(ChangeSetName=change_set)
            self._wait("stack_create_complete" if description is None else "stack_update_complete")
        return True

    def delete(self) -> None:
        """Deletes the stack with all that it created.

        Raises:
          DeployError: CloudFormation refuses, or something could not be deleted.
        """
        with refusals():
            self._api.delete_stack(StackName=self.name)
            self._wait("stack_delete_complete")

    def previous(self) -> Template | None:
        """Returns the template that is deployed now, to return to it; None if there is no stack."""
        description = self.describe()
        if description is None or description["StackStatus"] in _STILLBORN:
            return None
        with refusals():
            body = self._api.get_template(StackName=self.name)["TemplateBody"]
        values = {item["ParameterKey"]: item["ParameterValue"] for item in description.get("Parameters", ())}
        return Template(str(body), "", {}, values)

    def parameters(self, template: Template) -> dict[str, str]:
        """Returns the values with which a template is deployed now, of the parameters that it still has.

        They are empty if there is no stack, or its creation failed.

        Raises:
          DeployError: the stack is one of another template, whose resources an update would delete.
        """
        description = self.describe()
        if description is None or description["StackStatus"] in _STILLBORN:
            return {}
        if (other := description.get("Description")) != template.description:
            raise DeployError(
                f"The stack {self.name} is another one ({other}): choose another --name, or remove it first with"
                f" `python -m server.deploy destroy --name {self.name}`."
            )
        declared = {*template.parameters, *template.missing()}
        listed = [item for item in description.get("Parameters", ()) if item["ParameterKey"] in declared]
        # What a parameter of Systems Manager stood for.
        return {item["ParameterKey"]: item.get("ResolvedValue", item["ParameterValue"]) for item in listed}

    def _create_change_set(self, template: Template) -> str | None:
        """Returns the change set's id once it is ready; None if it would change nothing."""
        name = f"deploy-{time.time_ns()}"
        created = self._api.create_change_set(
            StackName=self.name, ChangeSetName=name, ChangeSetType="UPDATE", **template.to_arguments()
        )
        while True:
            found = self._api.describe_change_set(ChangeSetName=created["Id"], StackName=self.name)
            if found["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS"):
                break
            time.sleep(self._poll_seconds)
        if found["Status"] == "FAILED":
            self._api.delete_change_set(ChangeSetName=created["Id"], StackName=self.name)
            reason = found.get("StatusReason", "")
            if any(text in reason for text in _UNCHANGED):
                return None
            raise DeployError(f"CloudFormation refuses the change: {reason}")
        return str(created["Id"])

    def _wait(self, state: str) -> None:
        attempts = round(_LONGEST_SECONDS / max(self._poll_seconds, 1))
        config = {"Delay": self._poll_seconds, "MaxAttempts": attempts}
        try:
            self._api.get_waiter(state).wait(StackName=self.name, WaiterConfig=config)
        except WaiterError as error:
            if "Error" in error.last_response:
                raise
            if "Max attempts" in str(error):
                raise DeployError(
                    f"CloudFormation has worked on the stack {self.name} for an hour and goes on: see"
                    f" `python -m server.deploy status --name {self.name}`."
                ) from None
            raise DeployError(
                f"The stack {self.name} failed: {self._first_failure()} Correct it, and run the same command again."
            ) from None

    def _first_failure(self) -> str:
        """Returns why the last operation failed. Events are listed from the newest on, earlier operations after it."""
        reason = "CloudFormation gives no reason."
        for event in self._api.describe_stack_events(StackName=self.name)["StackEvents"]:
            status, text = event["ResourceStatus"], event.get("ResourceStatusReason", "")
            if status in _BEGINNING and event.get("PhysicalResourceId") == event["StackId"]:
                break
            if status.endswith("_FAILED") and "cancelled" not in text:
                reason = f"{event['LogicalResourceId']}: {' '.join(text.split())}"
        return reason


def deploy_healthy(stack: Stack, template: Template, is_healthy: Callable[[], bool]) -> bool:
    """Deploys, and returns to what was deployed before if the result is not healthy.

    Returns:
      False if the stack was up to date already.

    Raises:
      DeployError: it failed; the message says what is deployed now.
    """
    previous = stack.previous()
    has_changed = stack.deploy(template)
    if is_healthy():
        return has_changed
    if previous is None or not has_changed:
        raise DeployError(
            f"The stack {stack.name} does not become healthy: see its log, and remove it with"
            f" `python -m server.deploy destroy --name {stack.name}`."
        )
    stack.deploy(previous)
    raise DeployError(
        f"The stack {stack.name} did not become healthy, and is as it was before: see its log, and correct the image."
    )


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns refusals of AWS into errors of one line."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _refusal(error) from None


def _refusal(error: Exception) -> DeployError:
    """Returns an error of one line. Messages of AWS may name the caller, but never hold a secret."""
    return DeployError(f"AWS refuses: {' '.join(str(error).split())} Check the credentials, the region and the rights.")
