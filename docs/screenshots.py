"""Makes the pictures of the painter in docs/, in headless Chromium.

    pip install '.[browser]'    # and apt install chromium
    python docs/screenshots.py
"""
import re
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
PHOTO = DOCS.parent / "examples/train/imgs/dune_grass.jpg"
SHOTS = {  # file: window, colour scheme, whether a photo is opened
    "painter-wide": ((1440, 800), "light", False),
    "painter-dark": ((1440, 800), "dark", False),
    "painter-narrow": ((390, 844), "light", False),
    "painter-photo": ((1440, 800), "light", True),
}


def finished(page):
    """Waits for the full picture of what is drawn."""
    end = time.monotonic() + 120
    while not page.locator("#status").inner_text().startswith("Picture in"):
        if time.monotonic() > end:
            raise TimeoutError(page.locator("#status").inner_text())
        time.sleep(0.2)


def shoot(browser, url, window, scheme, photo):
    """A screenshot as a Pillow image."""
    context = browser.new_context(viewport=dict(zip(("width", "height"), window, strict=True)), color_scheme=scheme,
                                  device_scale_factor=1.5 if window[0] < 600 else 1)
    page = context.new_page()
    page.goto(url)
    finished(page)
    if photo:
        with page.expect_file_chooser() as chooser:
            page.click("#open")
        chooser.value.set_files(PHOTO)
        page.click("#photoBoth")
        page.wait_for_selector("#underOption:not([hidden])", timeout=60_000)
        finished(page)
    time.sleep(0.5)
    shot = Image.open(BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return shot


server = subprocess.Popen([sys.executable, DOCS.parent / "tools/paint.py", "--no-browser"], stdout=subprocess.PIPE,
                          text=True)
try:
    url = re.search(r"http://\S+", server.stdout.readline())[0]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, shot in SHOTS.items():
            shoot(browser, url, *shot).save(DOCS / f"{name}.jpg", quality=85)
        browser.close()
finally:
    server.terminate()
    server.wait()
