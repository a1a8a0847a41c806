import pytest


@pytest.fixture(scope="session")
def tfds_dir(tfds_data_dir):
    """Where data sets are prepared, once a session."""
    return tfds_data_dir
