"""The page, in a real Chromium without a window."""

import re
import shutil
import threading

import httpx
import pytest

from dnnshifter_ext.runtime import server
from tests.dnnshifter_ext.runtime import portfolios, serving

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
playwright_api = pytest.importorskip('playwright.sync_api')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
ABOVE_ZERO = re.compile(r'[0-9.]*[1-9][0-9.]*')
NPY = server.npy(portfolios.images(1))


@pytest.fixture(scope='module')
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def page(browser):
    page = browser.new_page(viewport={'width': 1000, 'height': 800})
    page.set_default_timeout(15_000)
    page.complaints, page.requested = [], []
    page.on('console', lambda message: message.type == 'error' and page.complaints.append(message.text))
    page.on('pageerror', lambda error: page.complaints.append(str(error)))
    page.on('request', lambda request: page.requested.append(request.url))
    return page


def wait_for(page, selector, text):
    """text: a string, or a pattern."""
    playwright_api.expect(page.locator(selector)).to_have_text(text, timeout=15_000)


def brightness(page):
    color = page.evaluate('getComputedStyle(document.body).backgroundColor')
    return sum(map(int, color.removeprefix('rgb(').removesuffix(')').split(',')[:3])) / 3


def test_the_page_shows_the_load_and_switches(loopback, page):
    with serving.running(queue=8) as (address, runtime, _):
        page.goto(address)
        wait_for(page, '#active', 'middle')
        assert page.locator('#variants tr').count() == 3
        assert [page.locator('tr.active td').nth(column).inner_text() for column in range(3)] == [
            'middle', '85.00 %', '16.0x']
        assert page.locator('#p50').inner_text() == '–'
        memory = runtime.stats().memory
        assert f'active {memory.active_bytes / 2**20:.2f} MiB' in page.locator('#legend').inner_text()

        is_over = threading.Event()

        def load():
            with httpx.Client(base_url=address) as client:
                while not is_over.wait(0.02):
                    client.post('/infer', content=NPY)

        caller = threading.Thread(target=load)
        caller.start()
        try:
            wait_for(page, '#qps', ABOVE_ZERO)
            wait_for(page, '#p50', ABOVE_ZERO)
        finally:
            is_over.set()
            caller.join()

        page.get_by_role('button', name='Larger').click()
        wait_for(page, '#active', 'large')
        assert runtime.stats().active == 'large'
        assert page.get_by_role('button', name='Larger').is_disabled()
        page.get_by_role('button', name='Switch to small').click()
        wait_for(page, 'tr.active td:first-child', 'small')
        assert runtime.stats().active == 'small'
        assert page.get_by_role('button', name='Smaller').is_disabled()

        bright = brightness(page)
        page.emulate_media(color_scheme='dark')
        assert brightness(page) < 60 < 200 < bright
        page.set_viewport_size({'width': 375, 'height': 700})
        assert page.evaluate('document.documentElement.scrollWidth') <= 375
        assert page.complaints == []
        assert all(url.startswith((address, 'data:')) for url in page.requested)
    wait_for(page, '#state', 'The server does not answer.')
