"""The chat page in a browser: what a visitor does and sees, without an error and without a request to another host."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from helpers.runs import agent_of
from helpers.serving import serving
from parlai.utils.conversations import Conversations

from spt_parlai.server.models import serve_agent
from spt_parlai.server.ratings import Ratings

playwright = pytest.importorskip('playwright.sync_api')
server = pytest.importorskip('spt_parlai.server.app')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium is installed')

expect = playwright.expect
expect.set_options(timeout=15_000)
PERSONAS = (('i like tea.', 'i have two cats.'), ('i am a nurse.',))
DESKTOP, PHONE = {'width': 1280, 'height': 820}, {'width': 390, 'height': 844}


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def ratings(tmp_path_factory):
    return tmp_path_factory.mktemp('ratings') / 'ratings.jsonl'


@pytest.fixture(scope='module')
def address(model, ratings):
    app = server.application([model], hosts=['127.0.0.1'], personas=PERSONAS, ratings=Ratings(ratings))
    with serving(app) as address:
        yield address


@pytest.fixture(scope='module')
def two_models(model, tiny_llms, ratings):
    other = serve_agent(agent_of(tiny_llms.opt, 'PromptTuningAgent', max_new_tokens=12), 'other/model')
    app = server.application([model, other], hosts=['127.0.0.1'], personas=PERSONAS, ratings=Ratings(ratings))
    with serving(app) as address:
        yield address
    other.engine.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as a new visitor. At the end of the test, nothing has gone wrong in it."""
    contexts, wrong, hosts = [], [], set()

    def opened(url=address, **more):
        context = browser.new_context(**{'viewport': DESKTOP, 'accept_downloads': True, **more})
        context.set_default_timeout(10_000)
        contexts.append(context)
        return look_at(context.new_page(), url)

    def look_at(page, url):
        page.on('console', lambda message: wrong.append(message.text) if message.type in ('error', 'warning') else None)
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.on('request', lambda request: hosts.add(request.url.split('/')[2]))
        page.goto(url)
        page.wait_for_selector('body[data-ready]')
        return page

    opened.look_at = look_at
    opened.wrong = wrong
    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
    assert {host.split(':')[0] for host in hosts} <= {'127.0.0.1'}


def say(page, text):
    before = page.locator('.turn.model').count()
    page.fill('#message', text)
    page.press('#message', 'Enter')
    expect(page.locator('.turn.model')).to_have_count(before + 1)
    settled(page)


def settled(page):
    """Wait until no reply is under way."""
    for _ in range(500):
        if not any(reply['running'] for turn in kept(page)['turns'] for reply in turn.get('replies', ())):
            break
        page.wait_for_timeout(20)
    page.wait_for_selector('#stop', state='hidden')
    expect(page.locator('[aria-busy=true]')).to_have_count(0)


def kept(page):
    return page.evaluate("JSON.parse(sessionStorage.getItem('spt-dialogue'))")


@pytest.fixture
def slow(model, monkeypatch):
    """Let every token take a while; `slow.seconds` says how long."""
    pause, decoder = SimpleNamespace(seconds=0.4), model.engine.model.decoder
    monkeypatch.setattr(model.engine.model, 'decoder', lambda *a: (time.sleep(pause.seconds), decoder(*a))[1])
    monkeypatch.setattr(model.engine, 'marks', ())
    return pause


# ---- a chat -----------------------------------------------------------------------------------------------


def test_the_first_visit(visit):
    page = visit()
    assert page.title() == 'tiny/model · spt chat'
    expect(page.locator('#about')).to_contain_text('SptAgent, 3 prompts')
    expect(page.locator('#persona li')).to_have_count(len(kept(page)['persona']))
    assert tuple(kept(page)['persona']) in PERSONAS
    page.click('.openings button >> nth=0')
    settled(page)
    expect(page.locator('.user .bubble')).to_have_text('hello ! how are you today ?')


def test_a_reply_shows_its_prompts_and_their_shares(visit):
    page = visit()
    for text in ('hello !', 'what do you do ?'):
        say(page, text)
    reply = kept(page)['turns'][-1]['replies'][0]
    last = page.locator('.turn.model').last
    expect(last.locator('.bubble')).to_have_text(reply['texts'][0] or 'an empty reply', use_inner_text=False)
    expect(last.locator('.bar')).to_have_count(3)
    shares = [f'{100 * score / sum(reply["scores"]):.0f}%' for score in reply['scores']]
    assert [share.inner_text() for share in last.locator('.bar .share').all()] == shares
    expect(last.locator('.bar.selected')).to_contain_text(f'prompt {reply["selected"]}')
    assert last.locator('.bar.used').inner_text() == last.locator('.bar.selected').inner_text()
    expect(page.locator('#strip .cell')).to_have_count(6)
    expect(page.locator('#strip .cell.used')).to_have_count(2)
    assert re.search(rf'prompts \d, {reply["selected"]}$', page.get_attribute('#strip-grid', 'aria-label'))


def test_ones_own_message_appears_at_once_and_a_reply_can_be_stopped(visit, slow):
    page = visit()
    page.fill('#message', 'hello !')
    page.press('#message', 'Enter')
    expect(page.locator('.user .bubble')).to_have_text('hello !')
    expect(page.locator('.bar')).to_have_count(3)
    page.click('#stop')
    settled(page)
    expect(page.locator('.turn.model .actions')).to_contain_text('stopped')
    reply = kept(page)['turns'][1]['replies'][0]
    assert reply['stopped'] and not reply['running']
    slow.seconds = 0
    say(page, 'and you ?')
    slow.seconds = 0.4
    page.fill('#message', 'more')
    page.press('#message', 'Enter')
    page.wait_for_selector('#stop')
    page.keyboard.press('Escape')
    settled(page)
    assert kept(page)['turns'][-1]['replies'][0]['stopped']


def test_text_arrives_in_pieces(visit, slow):
    slow.seconds = 0.15
    page = visit()
    page.fill('#message', 'hello !')
    page.press('#message', 'Enter')
    lengths = set()
    while page.locator('#stop').is_visible() or not lengths:
        lengths.add(len(page.locator('.turn.model .bubble').first.text_content() or ''))
        page.wait_for_timeout(60)
    assert len(lengths) > 3


def test_editing_a_message_answers_it_anew(visit):
    page = visit()
    for text in ('hello !', 'what do you do ?'):
        say(page, text)
    page.click('.turn.user >> nth=0 >> text=Edit')
    page.fill('.editor textarea', 'good evening !')
    page.press('.editor textarea', 'Enter')
    settled(page)
    assert [turn.get('text') for turn in kept(page)['turns']] == ['good evening !', None]
    page.focus('#message')
    page.keyboard.press('ArrowUp')
    expect(page.locator('.editor textarea')).to_have_value('good evening !')
    page.keyboard.press('Escape')
    expect(page.locator('.editor')).to_have_count(0)
    assert len(kept(page)['turns']) == 2


def test_an_edited_reply_is_what_the_model_has_said_and_shared_words_are_marked(visit):
    page = visit()
    page.click('#persona-edit')
    page.fill('#persona-text', 'i have two cats.\nyour persona: i bake bread .')
    page.click('#persona-form .primary')
    say(page, 'hello !')
    page.click('.turn.model >> text=Edit')
    page.fill('.editor textarea', 'my cat is baking <b>bread</b>')
    page.press('.editor textarea', 'Enter')
    expect(page.locator('.turn.model .bubble')).to_have_text('my cat is baking <b>bread</b>')
    assert page.locator('.turn.model mark').all_inner_texts() == ['cat', 'baking', 'bread']
    assert page.locator('#persona mark').all_inner_texts() == ['cats', 'bake', 'bread']
    with page.expect_request('**/v1/chat/completions') as asked:
        say(page, 'really ?')
    assert json.loads(asked.value.post_data)['messages'] == [
        {'role': 'system', 'content': 'i have two cats.\ni bake bread .'},
        {'role': 'user', 'content': 'hello !'},
        {'role': 'assistant', 'content': 'my cat is baking <b>bread</b>'},
        {'role': 'user', 'content': 'really ?'},
    ]


def test_a_prompt_can_be_forced_and_all_prompts_stand_side_by_side(visit):
    page = visit()
    say(page, 'hello !')
    selected = kept(page)['turns'][1]['replies'][0]['selected']
    other = (selected + 1) % 3
    page.click(f'.bar >> nth={other}')
    settled(page)
    expect(page.locator('.bar.used')).to_contain_text(f'prompt {other}')
    expect(page.locator('.bar.selected')).to_contain_text(f'prompt {selected}')
    expect(page.locator('.turn.model .actions')).to_contain_text('forced')
    forced = kept(page)['turns'][1]['replies'][0]['texts']
    page.click('text=All prompts')
    settled(page)
    reply = kept(page)['turns'][1]['replies'][0]
    assert reply['texts'][other] == forced[0] and len(reply['texts']) == 3 and reply['used'] == selected
    expect(page.locator('.choice')).to_have_count(3)
    page.click(f'.choice >> nth={other} >> text=Use')
    expect(page.locator('.choice.used')).to_contain_text(f'prompt {other}')
    with page.expect_request('**/v1/chat/completions') as asked:
        say(page, 'more')
    said = [m['content'] for m in json.loads(asked.value.post_data)['messages'] if m['role'] == 'assistant']
    assert said == [forced[0]] if forced[0] else said == []


def test_settings_reach_the_model(visit):
    page = visit()
    page.select_option('#prompt', '2')
    page.fill('#temperature', '1.2')
    page.fill('#top-p', '0.5')
    page.fill('#max-tokens', '7')
    with page.expect_request('**/v1/chat/completions') as asked:
        say(page, 'hello !')
    request = json.loads(asked.value.post_data)
    assert (request['spt_prompt'], request['temperature'], request['top_p'], request['max_tokens']) == (2, 1.2, 0.5, 7)
    page.select_option('#prompt', 'all')
    say(page, 'hello !')
    expect(page.locator('.choice')).to_have_count(3)


def test_the_candidate_that_the_others_agree_with_is_used(visit):
    page = visit()
    page.select_option('#candidates', '2')
    say(page, 'hello !')
    reply = kept(page)['turns'][1]['replies'][0]
    assert len(reply['ranking']) == 6 and reply['ranking'][reply['used']] == max(reply['ranking'])
    expect(page.locator('.choice')).to_have_count(6)
    shown = [float(name.split()[-1]) for name in page.locator('.choice .name').all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    expect(page.locator('.choice.used')).to_have_count(1)


def test_retry_undo_and_a_new_chat(visit):
    page = visit()
    for text in ('hello !', 'what do you do ?'):
        say(page, text)
    with page.expect_request('**/v1/chat/completions') as asked:
        page.click('.turn.model >> nth=0 >> text=Retry')
    assert json.loads(asked.value.post_data)['temperature'] == 0.7  # the likeliest words would be the same
    settled(page)
    expect(page.locator('.turn')).to_have_count(2)
    expect(page.locator('.turn.model .actions')).to_contain_text('drawn at temperature 0.7')
    say(page, 'more')
    page.click('#undo')
    expect(page.locator('.turn')).to_have_count(2)
    page.click('#restart')
    expect(page.locator('.turn')).to_have_count(0)
    expect(page.locator('#undo')).to_be_disabled()


def test_the_keyboard_writes_lines_and_sends(visit):
    page = visit()
    page.fill('#message', '')
    page.keyboard.type('hello')
    page.keyboard.press('Shift+Enter')
    page.keyboard.type('there')
    expect(page.locator('.turn')).to_have_count(0)
    page.keyboard.press('Enter')
    expect(page.locator('.turn.model')).to_have_count(1)
    settled(page)
    expect(page.locator('#message')).to_be_focused()
    assert kept(page)['turns'][0]['text'] == 'hello\nthere'


# ---- several visitors ---------------------------------------------------------------------------------------


def test_a_reload_keeps_the_dialogue_and_another_tab_has_its_own(visit):
    page = visit()
    say(page, 'hello !')
    page.fill('#temperature', '0.7')
    before = kept(page)
    tab = visit.look_at(page.context.new_page(), page.url)
    expect(tab.locator('.turn')).to_have_count(0)
    say(tab, 'another dialogue')
    page.reload()
    page.wait_for_selector('body[data-ready]')
    expect(page.locator('.turn')).to_have_count(2)
    expect(page.locator('#temperature-value')).to_have_text('0.7')
    assert kept(page) == before and kept(page) != kept(tab)
    say(page, 'what do you do ?')
    expect(page.locator('.turn')).to_have_count(4)


def test_a_reload_in_the_middle_of_a_reply_keeps_what_there_is(visit, slow):
    page = visit()
    page.fill('#message', 'hello !')
    page.press('#message', 'Enter')
    page.wait_for_selector('.turn.model')
    page.reload()
    page.wait_for_selector('body[data-ready]')
    settled(page)
    expect(page.locator('.turn.model .actions')).to_contain_text('stopped')


# ---- persona, export, ratings ---------------------------------------------------------------------------------


def test_a_persona_is_drawn_saved_and_loaded(visit, tmp_path):
    page = visit()
    first = kept(page)['persona']
    page.click('#persona-shuffle')
    expect(page.locator('#persona li').first).not_to_have_text(first[0])
    second = kept(page)['persona']
    assert {tuple(first), tuple(second)} == {*PERSONAS}
    with page.expect_download() as download:
        page.click('#persona-save')
    download.value.save_as(tmp_path / 'p.txt')
    assert (tmp_path / 'p.txt').read_text().splitlines() == second
    (tmp_path / 'p.txt').write_text('your persona: i paint <i>houses</i>.\n\ni sing.\n')
    page.set_input_files('#persona-file', tmp_path / 'p.txt')
    expect(page.locator('#persona li')).to_have_text(['i paint <i>houses</i>.', 'i sing.'])


def test_a_chat_is_exported_as_parlai_conversations_and_markdown(visit, tmp_path):
    page = visit()
    say(page, 'hello \u2028 * !')
    reply = kept(page)['turns'][1]['replies'][0]
    for button, name in (('#export-json', 'chat.jsonl'), ('#export-markdown', 'chat.md')):
        page.click('#export summary')
        with page.expect_download() as download:
            page.click(button)
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    (conversation,) = [*Conversations(str(tmp_path / 'chat.jsonl'))]
    human, answer = conversation
    assert (human['id'], human['text']) == ('human', 'hello \u2028 * !')
    assert (answer['id'], answer['text']) == ('tiny/model', reply['texts'][0])
    assert answer['prompt_scores'] == reply['scores'] and answer['selected_prompt'] == reply['selected']
    assert [line['text'] for line in conversation.context] == [f'your persona: {p}' for p in kept(page)['persona']]
    text = (tmp_path / 'chat.md').read_text()
    assert r'**You:** hello' in text and r'\* !' in text and f'(prompt {reply["selected"]}):**' in text


def test_ratings_are_saved(visit, ratings):
    page = visit()
    say(page, 'hello !')
    page.click('.turn.model .actions >> text=Edit')
    page.fill('.editor textarea', 'yes .')
    page.press('.editor textarea', 'Enter')
    good = page.locator('[title="Good reply"]')
    good.click()
    expect(good).to_have_attribute('aria-pressed', 'true')
    rating = json.loads(ratings.read_text().splitlines()[-1])
    assert (rating['kind'], rating['rating'], rating['reply'], rating['edited']) == ('rating', 1, 'yes .', True)
    assert rating['messages'][-1] == {'role': 'user', 'content': 'hello !'} and rating['model'] == 'tiny/model'
    good.click()
    expect(good).to_have_attribute('aria-pressed', 'false')
    assert json.loads(ratings.read_text().splitlines()[-1])['rating'] is None


def test_two_models_answer_blind_until_the_vote(visit, two_models, ratings):
    page = visit(two_models)
    say(page, 'hello !')
    assert page.locator('.turn.model .who').all_inner_texts() == ['Model A', 'Model B']
    expect(page.locator('.bar')).to_have_count(0)
    expect(page.locator('#strip')).to_be_hidden()
    page.click('text=A is better')
    order = kept(page)['turns'][1]['order']
    names = [['tiny/model', 'other/model'][which] for which in order]
    expect(page.locator('.turn.model .who')).to_have_text(names)
    expect(page.locator('.bar')).to_have_count(3)  # the other model has one prompt
    vote = json.loads(ratings.read_text().splitlines()[-1])
    assert vote['preferred'] == names[0] and vote['blind'] and vote['shown'] == order
    assert {reply['model'] for reply in vote['replies']} == {*names}
    page.uncheck('#blind')
    page.select_option('#prompt', '2')
    say(page, 'what do you do ?')
    assert page.locator('.turn.model >> nth=1 >> .who').all_inner_texts() == ['tiny/model', 'other/model']
    expect(page.locator('.error')).to_have_count(0)
    expect(page.locator('.turn.model >> nth=1 >> .bar.used')).to_contain_text('prompt 2')


# ---- errors, a token, other screens -----------------------------------------------------------------------------


def test_an_error_is_shown_and_the_chat_goes_on(visit, model, monkeypatch):
    page = visit()
    with monkeypatch.context() as patch:
        patch.setattr(model.engine, 'most_waiting', 0)
        say(page, 'hello !')
        expect(page.locator('.turn.model .error')).to_contain_text('try again')
    assert len(visit.wrong) == 1 and '429' in visit.wrong.pop()
    page.click('.turn.model >> text=Retry')
    settled(page)
    expect(page.locator('.turn.model .error')).to_have_count(0)
    expect(page.locator('.bar')).to_have_count(3)


def test_a_server_with_a_token_asks_for_it_once(visit, model):
    with serving(server.application([model], token='secret', personas=PERSONAS)) as address:
        page = visit(f'{address}/#token=secret')
        assert page.url == f'{address}/'
        say(page, 'hello !')
        page = page.context.new_page()
        page.goto(address)
        page.fill('#token', 'secret')
        page.click('#ask-token button')
        page.wait_for_selector('body[data-ready]')
        expect(page.locator('#about')).to_contain_text('tiny/model')
        page.close()


def test_a_phone_has_everything_within_its_width(visit):
    page = visit(viewport=PHONE, has_touch=True)
    say(page, 'hello !')
    page.click('text=All prompts')
    settled(page)
    say(page, 'a' * 300)
    expect(page.locator('.bar').first).to_be_visible()
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    inside = "[...document.querySelectorAll('main *, header *')].every((e) => e.getBoundingClientRect().right <= 391)"
    assert page.evaluate(f'() => {inside}')
    expect(page.locator('#panel')).to_be_hidden()
    page.click('#open-panel')
    expect(page.locator('#persona-shuffle')).to_be_visible()
    page.keyboard.press('Escape')
    expect(page.locator('#panel')).to_be_hidden()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_nobody_is_shut_out(visit, two_models, size, scheme):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    page = visit(two_models, viewport=size, color_scheme=scheme)

    def check():
        found = axe.run(page).response['violations']
        assert [(v['id'], [n['html'] for n in v['nodes']]) for v in found] == []

    check()
    say(page, 'hello !')
    check()
    page.click('text=Equal')
    page.click('text=All prompts >> nth=0')
    settled(page)
    page.click('.turn.user >> text=Edit')
    page.wait_for_selector('.editor')
    check()
    if size is PHONE:
        page.click('#open-panel')
        page.click('#persona-edit')
        check()
