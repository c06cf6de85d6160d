-- Run once, when the volume is new. POSTGRES_DB makes the database of Prefect.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_users;
