"""Passwords that head every published list. Endings such as `123` or `2026!` are stripped before the comparison."""

_HEADS = """
password passw0rd passwort motdepasse contrasena letmein welcome welcome1 bienvenue willkommen iloveyou princess
sunshine football baseball basketball superman batman spiderman starwars pokemon dragon monkey master shadow
michael jennifer jordan hunter hunter2 buster soccer harley ranger robert thomas george charlie andrew michelle
jessica ashley daniel pepper ginger summer winter autumn spring freedom whatever trustno1 trustno qwerty qwertz
azerty qwertyuiop asdfgh asdfghjkl zxcvbn zxcvbnm qazwsx qazwsxedc qweasd qweasdzxc qwerasdf qwer asdf zxcv abcd
abcdef abcdefg abcdefgh abc admin administrator root toor login guest user test tester testing demo default secret
changeme changethis change temp temporary temppass newpass newpassword mypassword passpass pass access access14
internet computer samsung google facebook linkedin twitter instagram microsoft windows apple iphone android
master1 mustang maverick ferrari porsche mercedes corvette yamaha suzuki honda chelsea arsenal liverpool
manchester barcelona juventus realmadrid steelers cowboys yankees lakers eagles patriots packers raiders redsox
chocolate cheese cookie banana orange strawberry flower butterfly rainbow angel angels lovely loveme lovers
forever friends family babygirl sweetheart beautiful honey blessed jesus jesuschrist christ heaven success
victory champion winner money million business company office manager corporate accounting finance support
service helpdesk server database oracle mysql postgres redis docker kubernetes jenkins ansible github gitlab
ubuntu debian fedora linux matrix nintendo playstation xbox minecraft fortnite warcraft counterstrike naruto
pikachu tinkerbell mickey minnie donald garfield snoopy scooby tigger winnie hello hellokitty helloworld goodbye
kitty puppy doggie horses dolphin tigers panther phoenix eagle falcon hawk wolf wolverine scorpion killer
assassin ninja samurai warrior soldier sniper gangster biteme fuckyou fuckme asshole bullshit pussycat sexy
hottie playboy passion midnight moonlight diamond crystal silver golden platinum purple yellow orange1 red123
january february march april june july august september october november december monday tuesday wednesday
thursday friday saturday sunday london paris berlin madrid newyork california texas florida chicago boston
america canada mexico england scotland ireland france germany spain italy brazil australia
a1b2c3d4 aa123456 abc12345 abcd1234 1qaz2wsx 1q2w3e4r 1q2w3e4r5t q1w2e3r4 zaq12wsx 1qazxsw2 147258369 159357
123123123 123321123 12344321 11223344 112233445566 987654321 87654321 123qwe asd123 qwe123 1234qwer 123456a
correcthorsebatterystaple correct-horse-battery-staple
"""

COMMON = frozenset(_HEADS.split())
