"""Whisper's units of time. All code that counts samples or frames takes its numbers from here."""

SAMPLE_RATE = 16_000  # samples per second; every encoder of the family was trained on this
N_FFT = 400  # samples, a 25 ms analysis window
HOP_LENGTH = 160  # samples per mel frame: 10 ms
SAMPLES_PER_FRAME = 2 * HOP_LENGTH  # samples per encoder frame: the second convolution has stride 2
FRAMES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_FRAME  # 50 encoder frames
WINDOW_SECONDS = 30
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE  # 480 000
WINDOW_FRAMES = WINDOW_SAMPLES // SAMPLES_PER_FRAME  # 1500 encoder frames


def encoder_frames(samples: int) -> int:
    """How many encoder frames a recording of `samples` samples at 16 kHz fills: ceil(samples / 320).

    A recording over 30 s is cut into windows of 30 s. Each holds a whole number of frames, so the formula also counts
    the frames of all windows together.
    """
    return -(-samples // SAMPLES_PER_FRAME)
