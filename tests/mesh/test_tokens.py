"""RequestAuthentications that undo what the service did are found, and others are not."""

from __future__ import annotations

from authz.mesh.traps import Trap
from tests.mesh.planting import HERE, RULES, Case

JWT = "      forwardOriginalToken: true\n"


CASES = {
    "a claim written over an identity header": Case(
        part=JWT,
        planted=JWT + f"      outputClaimToHeaders: [{{header: X_User, claim: sub}}] {HERE}\n",
        twin=JWT + "      outputClaimToHeaders: [{header: x-other, claim: sub}]\n",
        traps=(Trap.CLAIMS_OVERRIDE_IDENTITY,),
        rules=RULES,
    ),
    "the payload written over an identity header": Case(
        part=JWT,
        planted=JWT + f"      outputPayloadToHeader: x-roles {HERE}\n",
        twin=JWT + "      outputPayloadToHeader: x-payload\n",
        traps=(Trap.CLAIMS_OVERRIDE_IDENTITY,),
        rules=RULES,
    ),
    "a token forwarded from a place of its own": Case(
        part=JWT,
        planted=f"      forwardOriginalToken: true {HERE}\n      fromHeaders: [{{name: x-jwt}}]\n",
        twin="      fromHeaders: [{name: x-jwt}]\n",
        traps=(Trap.TOKEN_FORWARDED,),
        rules=RULES.replace("require: any_token", "require: any_token, authorization: remove"),
    ),
    "a token forwarded from a place that is looked at if none is said": Case(
        part="    - issuer: https://sso.example.com/realms/shop\n" + JWT,
        planted=f"    - {{issuer: 'https://sso.example.com', forwardOriginalToken: true}} {HERE}\n",
        twin="    - issuer: https://sso.example.com\n      fromParams: [access_token]\n",
        traps=(Trap.TOKEN_READ_AFTER, Trap.TOKEN_FORWARDED),
        rules=RULES.replace("require: any_token", 'require: any_token, authorization: {replace: "Basic {sub}"}'),
    ),
    "a token forwarded from a place that a rule takes it from": Case(
        part=JWT,
        planted=f"      forwardOriginalToken: true {HERE}\n      fromHeaders: [{{name: x-jwt}}]\n",
        twin="      forwardOriginalToken: true\n      fromHeaders: [{name: X-Token}]\n",
        traps=(Trap.TOKEN_FORWARDED,),
        rules=RULES.replace("any_token", "any_token, authorization: remove, token_in: [{header: x-token}]"),
    ),
    "a token read where a rule removed it": Case(
        part="    - issuer: https://sso.example.com/realms/shop\n" + JWT,
        planted=f"    - issuer: https://sso.example.com/realms/shop {HERE}\n",
        twin="    - issuer: https://sso.example.com/realms/shop\n      fromCookies: [jwt]\n",
        traps=(Trap.TOKEN_READ_AFTER,),
        rules=RULES.replace("require: any_token", "require: any_token, authorization: remove"),
    ),
    "a token that is stripped": Case(
        part="    - issuer: https://sso.example.com/realms/shop\n" + JWT,
        planted=f"    - issuer: https://sso.example.com/realms/shop {HERE}\n",
        twin="    - issuer: https://sso.example.com/realms/shop\n      fromParams: [jwt]\n",
        traps=(Trap.TOKEN_STRIPPED,),
        rules=RULES,
    ),
}  # fmt: skip
