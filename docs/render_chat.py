"""Take the picture of the chat page: `spt chat MODEL_FILE`, then `python docs/render_chat.py [ADDRESS]`."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PERSONA = ('i am a nurse at a small hospital.', 'i have two cats and a garden.', 'my favorite food is pizza.')
MESSAGES = ('hello ! how are you today ?', 'what do you do for a living ?', 'do you have any hobbies or pets ?')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    page = browser.new_page(viewport={'width': 1280, 'height': 760})
    page.goto(sys.argv[1] if len(sys.argv) > 1 else 'http://127.0.0.1:8020')
    page.wait_for_selector('body[data-ready]')
    page.click('#persona-edit')
    page.fill('#persona-text', '\n'.join(PERSONA))
    page.click('#persona-form .primary')

    def settled():
        page.wait_for_timeout(200)
        page.wait_for_selector('#stop', state='hidden')

    for message in MESSAGES:
        page.fill('#message', message)
        page.press('#message', 'Enter')
        settled()
    page.click('.turn.model >> nth=-1 >> text=All prompts')
    settled()
    page.mouse.move(0, 0)
    page.focus('#message')
    page.wait_for_timeout(200)
    page.screenshot(path=Path(__file__).with_name('chat.png'))
    browser.close()
