"""What the prompts of the constraints task are about; the two splits share no topic."""

from eval.constraints.kind import Topic

__all__ = ["HELDOUT_TOPICS", "TRAIN_TOPICS"]


def _parse(text: str) -> tuple[Topic, ...]:
    pairs = (line.split(": ") for line in text.strip().splitlines())
    return tuple(Topic(name, tuple(words.split())) for name, words in pairs)


# One a line: the topic, as it stands after "about", then words that an answer may well contain, the likeliest first.
TRAIN_TOPICS = _parse("""
baking bread: flour oven dough
tomato soup: tomatoes bowl warm
boiling an egg: water minutes pan
growing strawberries: fruit soil sun
a packed lunch: sandwich apple box
morning coffee: cup beans hot
home-made jam: sugar fruit jar
cooking rice: water pot grains
a family barbecue: grill meat garden
pancakes: milk eggs butter
fresh herbs: basil leaves kitchen
washing dishes: soap water plates
bees: flowers honey hive
a pet cat: fur sleep play
walking a dog: leash park exercise
feeding birds in winter: seeds garden snow
keeping hens: eggs feed yard
a goldfish: water tank food
horses: ride stable grass
frogs in a pond: water jump green
spiders: web legs insects
an old donkey: farm carry slow
squirrels: nuts tree tail
butterflies: wings flowers color
the first day in a new job: colleagues nervous office
a job interview: questions prepare clothes
working at night: sleep tired quiet
writing a letter of thanks: words kind paper
a long meeting: notes time people
working from home: desk computer quiet
asking for a pay rise: boss money work
repairing bicycles: chain wheel tools
delivering the mail: letters street door
a small bakery: bread customers early
driving a bus: passengers road safe
fishing for a living: boat sea nets
a train journey: window seat station
packing a suitcase: clothes shoes space
camping in the woods: tent fire trees
a visit to a big city: streets museum crowds
learning a few foreign words: speak language listen
crossing a busy street: cars look safe
reading a map: roads north paper
a holiday by the sea: beach sand waves
missing a flight: airport late ticket
a walk in the hills: path view boots
a rainy morning: clouds umbrella wet
a hot summer day: sun water shade
thunderstorms: lightning rain loud
the first snow: white cold children
fog on the road: slow lights drivers
a strong wind: trees leaves blow
autumn leaves: red trees fall
a hammer: nails wood hand
a sharp knife: cut careful blade
ladders: climb steps safe
painting a room: brush walls color
a leaking tap: water drip kitchen
sewing on a button: thread needle shirt
mending a chair: wood glue leg
a box of old keys: locks doors metal
learning the guitar: strings fingers music
chess: pieces board think
knitting a scarf: wool needles warm
taking photographs: camera light smile
singing in a choir: voices songs together
a vegetable garden: soil carrots water
collecting stamps: letters album countries
jigsaw puzzles: pieces picture table
swimming: water arms breathe
playing football: ball team goal
learning to draw: pencil lines paper
homework: school time teacher
a spelling test: words letters learn
a school trip: bus teacher friends
learning to read: books letters words
a shy new pupil: class friend kind
school uniforms: clothes pupils same
a good night's sleep: bed rest dark
brushing teeth: toothbrush clean dentist
a common cold: rest tea nose
drinking enough water: glass thirst healthy
a sprained ankle: ice rest foot
stretching in the morning: body muscles breathe
sharing a flat: rent kitchen clean
saving money: bank spend month
a noisy neighbour: polite talk sleep
a birthday party: cake friends gifts
""")

HELDOUT_TOPICS = _parse("""
making pizza: cheese oven dough
a fruit salad: apples bowl sweet
hot chocolate: milk cup warm
potatoes: boil fry soil
a picnic: blanket food grass
spicy food: pepper mouth hot
apple pie: crust cinnamon oven
eating at a restaurant: waiter menu table
peeling onions: tears knife kitchen
elephants: trunk large herd
a stray kitten: milk home small
penguins: ice swim cold
ants: colony small carry
owls: night eyes hunt
a parrot that talks: words feathers cage
sheep on a hill: wool grass shepherd
snails: shell slow garden
being a nurse: patients hospital care
a firefighter's day: fire truck rescue
answering the phone at work: voice polite message
a lost wallet at the office: money find honest
cutting hair: scissors customer mirror
a market stall: vegetables price sell
the last day before retirement: years friends goodbye
a night on a ferry: boat waves cabin
riding a bicycle to work: helmet road traffic
staying with relatives: family guest house
getting lost in a strange town: map streets ask
a mountain hut: snow fire stars
sending a postcard: stamp picture friend
a rainbow: rain sun colors
a frosty window: ice glass cold
a long dry summer: rain heat plants
the sound of rain at night: roof sleep soft
a screwdriver: screws handle turn
an old sewing machine: thread cloth needle
changing a light bulb: lamp ladder switch
a wheelbarrow: garden load wheel
sharpening a pencil: point wood paper
learning the piano: keys music practice
bird watching: binoculars quiet trees
dancing: music feet rhythm
making pottery: clay hands wheel
skating on a lake: ice winter cold
writing a poem: words lines feeling
a class play: stage costume actors
school lunch: food tray hungry
learning to count: numbers fingers ten
a favourite teacher: class kind remember
a visit to the dentist: teeth chair brave
wearing glasses: eyes see clear
a healthy breakfast: fruit oats morning
washing hands: soap water germs
a headache: rest water pain
borrowing books from a library: read shelf return
moving to a new home: boxes rooms neighbours
""")
