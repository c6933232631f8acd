"""The name of the file with variables for other machines."""

DEEPSPEED_ENVIRONMENT_NAME = ".deepspeed_env"
